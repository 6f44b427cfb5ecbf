"""`python -m memdist.launch.on_ray WORDS...`: `memdist WORDS...` on a Ray cluster, GPUS ranks on each of NODES machines.

Ray finds the machines and holds their GPUs; on each, one actor starts and watches the ranks as `memdist.launch.local` does
anywhere. Ray Train is not used: it would run the command in a thread, where no signal can be caught, and form a process
group of its own first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from memdist.launch import ends as ends_
from memdist.launch.ends import RESUME_ME, End
from memdist.launch.forward import Forward, bound
from memdist.launch.ports import Port

_TICK = 0.3


class Machine:
    """What runs in the actor of one machine: its part of the job, and what that prints."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self._process: subprocess.Popen[bytes] | None = None
        self._port = Port()
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()

    def meeting(self) -> tuple[str, int]:
        """Address and free port of this machine, should rank 0 be here."""
        import ray

        return ray.util.get_node_ip_address(), self._port.number

    def start(self, words: Sequence[str], environment: dict[str, str], folder: str) -> None:
        """Start the ranks, as the person who started the job would in that folder."""
        # What Ray has set for its own workers (GPUs that the actor may use, above all) stays.
        mine = {key: os.environ[key] for key in ("CUDA_VISIBLE_DEVICES",) if key in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "memdist.launch.local", *words],
            env={**environment, **mine},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
            preexec_fn=bound(),
        )

    def send(self, number: int) -> None:
        """Hand a signal on."""
        assert self._process is not None
        self._process.send_signal(number)

    def look(self, out: int, err: int) -> tuple[bytes, bytes, int | None]:
        """What was printed after these positions, and the exit code once there is one."""
        assert self._process is not None
        code = self._process.poll()  # first: what is printed until then is read below
        return _after(self._out.fileno(), out), _after(self._err.fileno(), err), code


def _after(file: int, position: int) -> bytes:
    return os.pread(file, 1 << 20, position)


def wide_enough(there: Sequence[Mapping[str, Any]], kind: str, least: int) -> int:
    """Of the machines that `ray.nodes` tells of, how many have so many GPUs or CPUs: ranks of one are never spread over two."""
    return sum(bool(node["Alive"]) and node["Resources"].get(kind, 0) >= least for node in there)


def run(words: Sequence[str], gpus: int, nodes: int) -> int:
    """Run a command of memdist on machines of a Ray cluster; gives the exit code of the whole."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    address = os.environ.get("RAY_ADDRESS") or "local"
    alone: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    if address == "local":
        alone["num_cpus"] = max(gpus, os.cpu_count() or 1)  # ranks on CPUs may be more than cores
    with Forward() as forward:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **alone)
        forward.again()
        try:
            has_gpus = ray.cluster_resources().get("GPU", 0) > 0
            kind = "GPU" if has_gpus else "CPU"
            if (wide := wide_enough(ray.nodes(), kind, gpus)) < nodes:
                total = ray.cluster_resources().get(kind, 0)
                having = f"{wide} machine{'s' if wide != 1 else ''} with {gpus} or more"
                _say(
                    f"{nodes} x {gpus} ranks cannot be: the Ray cluster has {total:g} {kind}s, {having}; lower NODES or GPUS"
                )
                return 2
            group = placement_group([{kind: gpus}] * nodes, strategy="STRICT_SPREAD")
            while not ray.wait([group.ready()], timeout=_TICK)[0]:
                if forward.got:
                    return 130 if signal.SIGINT in forward.got else RESUME_ME
            actor = ray.remote(Machine)
            machines = [
                actor.options(
                    num_cpus=0 if has_gpus else gpus,
                    num_gpus=gpus if has_gpus else 0,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
                ).remote()
                for number in range(nodes)
            ]
            host, port = ray.get(machines[0].meeting.remote())
            common = {**os.environ, "GPUS": str(gpus), "NODES": str(nodes)}
            common |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
            for number, machine in enumerate(machines):
                ray.get(machine.start.remote(list(words), common | {"NODE_RANK": str(number)}, os.getcwd()))
            return _wait(machines, forward)
        finally:
            ray.shutdown()


def _wait(machines: Sequence[Any], forward: Forward) -> int:
    import ray

    read = [[0, 0] for _ in machines]
    ends: dict[int, End] = {}
    while len(ends) < len(machines):
        forward.hand_on(lambda number: ray.get([machine.send.remote(number) for machine in machines]))
        for number, machine in enumerate(machines):
            try:
                out, err, code = ray.get(machine.look.remote(*read[number]))
            except ray.exceptions.RayActorError:
                _say(f"machine {number} of the job is gone")
                out, err, code = b"", b"", 1
            for stream, text, place in ((sys.stdout, out, 0), (sys.stderr, err, 1)):
                read[number][place] += len(text)
                with contextlib.suppress(OSError):
                    stream.buffer.write(text)
                    stream.flush()
            if code is not None and not out and not err:
                ends.setdefault(number, End(number, code, at=time.monotonic()))
        if forward.insists or any(end.code not in (0, RESUME_ME) for end in ends.values()):
            break
        time.sleep(_TICK)
    return 130 if forward.insists else ends_.code_of(list(ends.values()))


def _say(sentence: str) -> None:
    print(f"memdist: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], int(os.environ.get("GPUS", "1")), int(os.environ.get("NODES", "1"))))
