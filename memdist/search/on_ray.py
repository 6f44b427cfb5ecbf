"""Ray Tune trains trials wherever a Ray cluster has room; the one file of this room that imports ray.

Tune asks (`Searcher.suggest`) what to train next and is told what came of it; it finds machines, CPUs and GPUs, keeps
processes for the next trial, and starts a trial again elsewhere when its machine fails. It decides nothing and restores
nothing: that is the ledger's (`memdist.search.ledger`), as Tune's own restoring loses trials that wait and forgets rungs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memdist import process
from memdist.errors import SearchError
from memdist.launch.ends import RESUME_ME
from memdist.launch.forward import SIGNALS, Forward
from memdist.search.driver import Driver
from memdist.search.hands import Hands, Task
from memdist.search.methods.method import Ask
from memdist.search.outcome import Outcome

_POLL = 2.0
"""Seconds between two looks of a trial whether the search is to stop."""
_LOST = 3
"""How often a trial is started again whose machine or process of Ray's was lost."""
_TRIES = 3
"""How often Ray is begun on this machine, where others work as well."""
_ANSWER = 10.0
"""Seconds within which a Ray cluster that is already there answers."""
_GATHERED = 60.0
"""Seconds within which the machines of an allocation come."""
_REFUSED = 3
"""Looks in a row at which nobody listens where Ray's head was: it is gone."""
STORE = 100 * 2**20
"""Bytes of Ray's shared memory: next to nothing goes through it."""

# Read when ray is imported, and by what it starts.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1e9",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Where others work as well, Ray's first process needs more than its 30 s to begin.
    "RAY_gcs_server_port_wait_time_s": "120",
}


@contextlib.contextmanager
def cluster(address: str | None, cpus: int, gpus: int) -> Iterator[None]:
    """Ray: the cluster at an address, or one of this machine alone that ends with the context; raises SearchError."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address:
        _reach(address)
    else:
        # Who can reach a port of it could else run what they like as this user: not on a machine that others share.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once a process
    import ray

    folder = None if address else temporary()
    mine: dict[str, Any] = {}
    if folder is not None:
        mine = {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False, "object_store_memory": STORE}
        mine |= {"_temp_dir": str(folder), "_node_ip_address": "127.0.0.1"}
    _begin(address, mine)
    try:
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _reach(address: str) -> None:
    """Raise a SearchError where nobody answers at an address: Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise SearchError(
            f"--ray {address} is for Ray's client, by which no search runs: give HOST:PORT of the cluster's head, or auto"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():  # such as auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise SearchError(
            f"--ray {address} cannot be reached: {why}; give the address of a Ray cluster that runs, or leave it out"
        ) from error


def _begin(address: str | None, mine: Mapping[str, Any]) -> None:
    """Be the driver of a cluster; raises SearchError where it cannot be reached, or does not begin in a few attempts."""
    import ray

    for attempt in range(1 if address else _TRIES):
        try:
            with unmoved():
                ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **mine)
            return
        except Exception as error:  # bare ones too, where one of Ray's own processes is too slow
            ray.shutdown()
            why = str(error).split("\n")[0]
            if address:
                raise SearchError(
                    f"--ray {address} cannot be reached: {why}; give the address of a Ray cluster that runs, or leave it out"
                ) from error
            if attempt == _TRIES - 1:
                raise SearchError(
                    f"Ray does not begin on this machine: {why}; look whether others use all its cores or memory, and try again"
                ) from error


@contextlib.contextmanager
def unmoved() -> Iterator[None]:
    """What is started meanwhile takes no notice of USR1 and USR2, which Slurm sends to all processes of a step.

    Handlers that are put in place meanwhile, as Ray's for TERM, are taken away again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def temporary() -> Path:
    """A folder for what Ray keeps; those of searches that were killed go."""
    # Paths of the sockets in it have an end.
    place = next(path for path in (tempfile.gettempdir(), "/tmp") if len(path) < 20 or path == "/tmp")
    for left in Path(place).glob("mdray-*-*-*"):
        _, pid, start, _ = left.name.split("-", 3)
        if process.life(int(pid), int(start)) == "dead":
            shutil.rmtree(left, ignore_errors=True)
    me = process.this()
    return Path(tempfile.mkdtemp(prefix=f"mdray-{me.pid}-{me.start}-", dir=place))


def room(need: Mapping[str, float], most: int | None = None) -> int:
    """How many trials that need so much fit on the machines that are there; `most`: on each of them."""
    import ray

    total = 0
    for node in ray.nodes():
        if node["Alive"]:
            fit = min(
                (int(node["Resources"].get(kind, 0) / much + 1e-6) for kind, much in need.items() if much), default=0
            )
            total += fit if most is None else min(fit, most)
    return total


def gather(machines: int) -> None:
    """Wait for a minute, at most, until so many machines are there: those of an allocation come one after the other."""
    import ray

    end = time.monotonic() + _GATHERED
    while sum(node["Alive"] for node in ray.nodes()) < machines and time.monotonic() < end:
        time.sleep(_POLL / 4)


def resources() -> dict[str, float]:
    """CPUs and GPUs of the whole cluster."""
    import ray

    found = ray.cluster_resources()
    return {"CPU": float(found.get("CPU", 0)), "GPU": float(found.get("GPU", 0))}


def fits(need: Mapping[str, float]) -> None:
    """Raise a SearchError where no machine has what one trial needs: it would be waited for for ever."""
    import ray

    if room(need) > 0:
        return
    asked = " and ".join(f"{much:g} {kind}s" for kind, much in need.items() if much)
    most = {kind: max((n["Resources"].get(kind, 0) for n in ray.nodes() if n["Alive"]), default=0) for kind in need}
    have = " and ".join(f"{much:g} {kind}s" for kind, much in most.items())
    raise SearchError(
        f"a trial needs {asked}, and no machine of the cluster has more than {have}: lower search.cpus or search.gpus"
    )


def there(need: Mapping[str, float], function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function answers on a machine of the cluster, with so many of its CPUs and GPUs; raises what it raises."""
    import ray

    distant = ray.remote(num_cpus=need["CPU"], num_gpus=need["GPU"], max_retries=0)(function)
    return ray.get(distant.remote(*arguments))


def search(
    driver: Driver,
    need: Mapping[str, float],
    workers: Path,
    look: Callable[[], None],
    *,
    ranks: int = 1,
    most: int | None = None,
) -> bool:
    """Train until the driver is done, or a signal comes; whether it is done. `look` is called now and then.

    `most`: trials at once on a machine, whatever else has room there.
    """
    import ray
    from ray import tune
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Bell:
        """Told once that the search stops, asked by every trial."""

        def __init__(self) -> None:
            self.rung = False

        def ring(self) -> None:
            self.rung = True

        def ringing(self) -> bool:
            return self.rung

    name = f"memdist-{uuid.uuid4().hex}"
    # Here, where the search itself ends with the machine: else it would lie on any, and take all trials along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lasting = {"name": name, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
    bell = ray.remote(num_cpus=0)(Bell).options(**lasting).remote()
    threads = max(1, int(need["CPU"]) // ranks)
    for left in driver.place.glob(".tune-*"):
        shutil.rmtree(left, ignore_errors=True)  # by a search that was killed: this one alone is here now
    folder = Path(tempfile.mkdtemp(prefix=".tune-", dir=driver.place))
    # Of a process that was lost it prints a traceback, and begins it again; the ledger says what came of it.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.air").setLevel(logging.CRITICAL)
    with Forward() as forward, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        common = {"workers": str(workers), "threads": threads, "bell": name}
        asking = _asking(driver, lambda: room(need, most), ranks, common)
        watching = _watching(driver, asking, forward, lambda: bell.ring.remote(), look)
        tuner = tune.Tuner(
            tune.with_resources(_trainable(), {"cpu": need["CPU"], "gpu": need["GPU"]}),
            tune_config=tune.TuneConfig(search_alg=asking, num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=str(folder),
                name="t",
                verbose=0,
                callbacks=[watching],
                failure_config=tune.FailureConfig(max_failures=_LOST),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            with _guard():
                tuner.fit()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return driver.done


@contextlib.contextmanager
def _guard() -> Iterator[None]:
    """Leave this process where Ray's part on this machine has died: its library would wait for ever.

    All that was decided is on the disk, and what Ray has started ends with this process.
    """
    import ray

    context, over = ray.get_runtime_context(), threading.Event()
    me, head, refused = context.get_node_id(), str(context.gcs_address), 0

    def watch() -> None:
        nonlocal refused
        while not over.wait(_POLL):
            # Without its head the library would not answer, and end this process after a minute as if by a fault.
            refused = refused + 1 if _refuses(head) else 0
            if 0 < refused < _REFUSED:
                continue
            try:
                there = not refused and any(node["NodeID"] == me and node["Alive"] for node in ray.nodes())
            except Exception:  # whatever is left of Ray has to say
                there = False
            if not there and not over.is_set():
                print(
                    "memdist: Ray has died on this machine; what was found is safe: the same command goes on from there",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(RESUME_ME)

    thread = threading.Thread(target=watch, name="memdist ray", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _refuses(address: str) -> bool:
    """Whether nobody listens at an address of a machine that is there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_POLL).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        pass  # Ray judges networks
    return False


def _trainable() -> Any:
    from ray import tune

    class Trial(tune.Trainable):
        """One stretch of training of one trial, in a process that stays for the next one."""

        def setup(self, config: dict[str, Any]) -> None:
            self.task = config
            self.hands = Hands(Path(config["workers"]), config["threads"])

        def step(self) -> dict[str, Any]:
            import ray

            bell, seen = ray.get_actor(self.task["bell"]), [0.0, False]

            def stop() -> bool:
                if not seen[1] and time.monotonic() - seen[0] > _POLL:
                    seen[:] = [time.monotonic(), ray.get(bell.ringing.remote())]
                return bool(seen[1])

            outcome = self.hands.train(Task(**self.task["task"]), stop)
            return {"outcome": list(outcome), "ask": self.task["ask"], "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.task = new_config
            return True

        def cleanup(self) -> None:
            self.hands.close()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            return None

        def load_checkpoint(self, checkpoint: Any) -> None:
            return None

    return Trial


def _asking(driver: Driver, slots: Callable[[], int], ranks: int, common: Mapping[str, Any]) -> Any:
    from ray.tune.search import Searcher

    class Asking(Searcher):
        """The driver, as Tune asks and tells it."""

        def __init__(self) -> None:
            super().__init__(metric="outcome", mode="min")
            self.broken: Exception | None = None
            """Why what came of a trial could not be taken in: Tune would pass over it, and wait for ever."""
            self._asked: dict[str, Ask] = {}
            self._slots = (0.0, 1)

        def suggest(self, trial_id: str) -> dict[str, Any] | None | str:
            if time.monotonic() - self._slots[0] > _POLL:
                self._slots = (time.monotonic(), max(1, slots()))
            # What begins only when there is room is decided then.
            if len(driver.handed) >= self._slots[1]:
                return None
            ask = driver.next()
            if ask.what == "done":
                return str(Searcher.FINISHED)
            if ask.what == "wait":
                return None
            self._asked[trial_id] = ask
            return {**common, "ask": list(ask), "task": asdict(driver.task(ask, ranks))}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            ask = self._asked.pop(trial_id, None)
            if ask is None:
                return
            lost = f"its machine, or its process of Ray's, was lost {_LOST + 1} times"
            failed = Outcome("failed", kind="node-failure", why=lost)
            try:
                driver.tell(ask, failed if error or not result else Outcome(*result["outcome"]))
            except Exception as problem:  # such as a disk that is full
                self.broken = self.broken or problem

        def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[()]]:
            return dict, ()  # Tune writes down what nobody reads again

        def save(self, checkpoint_path: str) -> None:
            return None

        def restore(self, checkpoint_path: str) -> None:
            raise AssertionError("the ledger restores, not Tune")

    return Asking()


def _watching(
    driver: Driver, asking: Any, forward: Forward, ring: Callable[[], object], look: Callable[[], None]
) -> Any:
    from ray import tune

    class Watching(tune.Callback):
        """Called by Tune between its own affairs."""

        _ours, _rung = False, -math.inf

        def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[()]]:
            return dict, ()

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if not self._ours:
                self._ours = True
                forward.again()  # Tune takes USR1 for itself, and ends trials as they stand

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if asking.broken is not None:
                raise asking.broken
            if forward.got and time.monotonic() - self._rung > _POLL:  # again: a bell that was lost has forgotten it
                driver.stopping, self._rung = True, time.monotonic()
                ring()
            if forward.insists:
                raise KeyboardInterrupt
            look()

    return Watching()
