"""A Ray cluster inside one Slurm allocation: `srun memdist search run SPACE`, one task on each node.

Task 0 is the search and Ray's head; each other one lends its machine to it and leaves when the search does. Nothing of this
knows of any other Ray on the machines: own ports, an own folder, a token that only the user can read, and an end by the
processes that were started here, never by `ray stop`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from memdist import rundir
from memdist.errors import SearchError
from memdist.launch import gpus, local, place
from memdist.launch.forward import bound
from memdist.launch.ports import Port

TOKEN = ".token"
"""File of the search folder: who can read it may use the Ray cluster."""

_PATIENCE = 300.0
"""Seconds within which the tasks of an allocation find each other."""
_UP = 120.0
"""Seconds within which Ray is up on a machine."""
_GRACE = 10.0
"""Seconds that Ray has to leave."""

_OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which nothing takes itself for one of the tasks that srun started."""
    step = ("SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "PMI_", "PMIX_")
    return {key: value for key, value in environment.items() if key not in _OWN and not key.startswith(step)}


@contextlib.contextmanager
def head(search: Path, here: place.Place, environment: Mapping[str, str]) -> Iterator[str]:
    """Task 0: Ray's head, and the address of the cluster; the other tasks leave when the context ends. Raises SearchError."""
    rundir.make_folder(search)
    token = search / TOKEN
    _private(token)
    listener = _listen(int(environment["MASTER_PORT"]))
    met: list[socket.socket] = []
    listener.settimeout(_PATIENCE)
    try:
        try:
            met.append(listener.accept()[0])
        except TimeoutError as error:
            raise SearchError(
                f"none of the other {here.world - 1} tasks of this step has come within {_PATIENCE:g} s: look at what they "
                "print, or set MASTER_ADDR to an address of the first node that the others reach"
            ) from error
        own = met[0].getsockname()[0]
        with Port() as port:
            number = port.number
        with _ray(["--head", f"--port={number}", "--include-dashboard=false"], own, token):
            _wait_for(own, number)
            _tell(met[0], own, number)
            # Others may come as late as they like: each is room for more trials.
            threading.Thread(target=_meet, args=(listener, met, own, number), daemon=True).start()
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
            yield f"{own}:{number}"
    finally:
        listener.close()
        for one in met:
            one.close()
        token.unlink(missing_ok=True)


def lend(search: Path, environment: Mapping[str, str]) -> None:
    """Any other task: a part of the Ray cluster of task 0 until that leaves; raises SearchError where it is not met."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)  # task 0 decides
    connection = _connect(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
    with connection, connection.makefile() as lines:
        connection.settimeout(_PATIENCE + _UP)
        try:
            line = lines.readline()
        except OSError:
            line = ""
        if not line:
            return  # task 0 has left, and has said why
        address, number = json.loads(line)
        token = search / TOKEN
        begun = time.monotonic()
        while not token.is_file() and time.monotonic() - begun < _PATIENCE:
            time.sleep(0.5)  # a shared file system shows what is new late
        with _ray([f"--address={address}:{number}"], connection.getsockname()[0], token) as process:
            connection.settimeout(1.0)
            while process.poll() is None:
                try:
                    if not connection.recv(1):
                        return
                except TimeoutError:
                    continue
                except OSError:
                    return


@contextlib.contextmanager
def _ray(words: list[str], address: str, token: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Ray on this machine, as a child that ends with the context."""
    from memdist.search import on_ray

    folder = on_ray.temporary()
    log = folder / "start.log"
    common = [
        "--block",
        f"--node-ip-address={address}",
        f"--num-cpus={_cpus(os.environ)}",
        f"--num-gpus={gpus.count()}",
        f"--object-store-memory={on_ray.STORE}",
        f"--temp-dir={folder}",
        "--disable-usage-stats",
        # Ports of their own choice: nodes may share a machine, and so may users.
        *(f"--{name}-port=0" for name in ("node-manager", "object-manager", "min-worker", "max-worker")),
        *(f"--{name}-port=0" for name in ("metrics-export", "dashboard-agent-listen", "dashboard-agent-grpc")),
        "--runtime-env-agent-port=0",
    ]
    mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)} | on_ray.ENVIRONMENT
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *common],
            env=alone(os.environ) | mine,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=_unmoved(),
        )
    try:
        yield process
    finally:
        if process.poll() not in (None, 0):
            print(
                f"memdist: Ray has ended with exit code {process.returncode}:", log.read_text(errors="replace")[-2000:]
            )
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _unmoved() -> Callable[[], None]:
    """What Ray does before it begins: it ends with this process, and takes no notice of what Slurm tells all processes."""
    bind = bound()

    def act() -> None:
        bind()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    return act


def _cpus(environment: Mapping[str, str]) -> int:
    """CPUs of this task: what Slurm has given it, where it says so and does not bind it to them."""
    given = environment.get("SLURM_CPUS_PER_TASK", "")
    return min(int(given), local.cores()) if given.isdecimal() and int(given) else local.cores()


def _private(token: Path) -> None:
    """Write a new token that the user alone can read."""
    token.unlink(missing_ok=True)
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _listen(port: int) -> socket.socket:
    # On all of its networks: which of them the other nodes come by is known once one has come. What is told there, an
    # address, is of no use without the token.
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
    except OSError as error:
        listener.close()
        raise SearchError(
            f"port {port}, at which the tasks of this step meet, is taken: set MASTER_PORT to a free one"
        ) from error
    listener.listen(128)
    return listener


def _meet(listener: socket.socket, met: list[socket.socket], address: str, number: int) -> None:
    listener.settimeout(None)
    while True:
        try:
            one = listener.accept()[0]
        except OSError:  # closed
            return
        met.append(one)
        _tell(one, address, number)


def _tell(one: socket.socket, address: str, number: int) -> None:
    with contextlib.suppress(OSError):  # it has gone again
        one.sendall(json.dumps([address, number]).encode() + b"\n")


def _connect(address: str, port: int) -> socket.socket:
    begun = time.monotonic()
    while True:
        try:
            return socket.create_connection((address, port), timeout=10)
        except OSError as error:
            if time.monotonic() - begun > _PATIENCE:
                why = (error.strerror or str(error)).lower()
                raise SearchError(
                    f"task 0 of this step is not met at {address}:{port} ({why}): set MASTER_ADDR to an address of the first "
                    "node that the others reach"
                ) from error
            time.sleep(0.5)


def _wait_for(address: str, port: int) -> None:
    begun = time.monotonic()
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() - begun > _UP:
                raise SearchError(
                    f"Ray is not up at {address}:{port} after {_UP:g} s: look at what it has printed above"
                ) from error
            time.sleep(0.2)
