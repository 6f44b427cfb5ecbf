"""Trainings that are forked off a process which has imported everything: `python -m tests.faults.forks REQUEST`.

Starting costs nothing then, so that a hundred of them can be killed in a minute. The process has computed nothing with torch
before it forks, and has one thread.
"""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# All that a training imports, so that the children find it there.
import PIL.Image
import rich.progress
import safetensors.torch
import torch
import torch._dynamo  # the first optimiser loads it
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer import record_writer

from memdist import cli, models
from memdist.model import Pair
from memdist.models import palette, pix2pix, unet
from memdist.predict import pictures, verify
from memdist.train import evaluate, loop
from memdist.train import step as step_
from memdist.train.start import Session

assert all(
    (
        palette,
        pix2pix,
        unet,
        PIL.Image,
        rich.progress,
        safetensors.torch,
        event_pb2,
        summary_pb2,
        record_writer,
        pictures,
        verify,
        evaluate,
    )
)


def forked(work: Callable[[], int], output: Path | None = None) -> int:
    """Do something in a child; gives its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        out = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        torch.set_num_threads(1)
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child; gives its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lose(at: int) -> None:
    """Lose a weight of the network that predicts after step `at`, while the rates are more than a third of what they were."""
    taken = step_.take_step

    def take_step(session: Session, micros: Sequence[Pair], sums: step_.Sums) -> None:
        taken(session, micros, sums)
        if session.step == at and session.rate > 1 / 3:
            with torch.no_grad():
                next(session.stage.nets[session.model.averaged()[0]].parameters())[0] = math.nan

    step_.take_step = take_step


def kills(request: dict[str, Any]) -> dict[str, Any]:
    """Train one run folder to its end, killing it `kills` times at instants drawn from `seed`; gives what happened.

    They come up to `reach` times as long after a start as an undisturbed run takes. With `lost` a weight is lost after that
    step, until the run has gone back twice.
    """
    raw, out = request["raw"], Path(request["out"])
    chance = random.Random(request["seed"])

    def train() -> int:
        if "lost" in request:
            lose(request["lost"])
        return loop.train(models.resolve(raw), out)

    began = time.monotonic()
    assert ended(forked(train, out.with_suffix(".warm"))) == 0, out.with_suffix(".warm").read_text()
    whole = time.monotonic() - began
    shutil.move(out, request["whole"])
    done: list[float] = []
    finished = 0
    while len(done) < request["kills"]:
        delay = chance.uniform(0.0, request["reach"] * whole)
        child = forked(train, out.with_suffix(".log"))
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        code = ended(child)
        if code == -signal.SIGKILL:
            done.append(delay)
            continue
        assert code == 0, out.with_suffix(".log").read_text()
        # It came to its end first: the next one begins anew, and this one is compared.
        shutil.move(out, f"{request['whole']}-{finished}")
        finished += 1
    assert ended(forked(train, out.with_suffix(".log"))) == 0, out.with_suffix(".log").read_text()
    return {"kills": len(done), "finished": finished + 1, "whole": whole}


def shards(request: dict[str, Any]) -> dict[str, Any]:
    """Predict by `line` into `whole` undisturbed, then in 8 shards at once into `out`, each killed `kills` times and restarted.

    Instants are drawn from `seed`: every other one up to `reach` times as long after a start as all took undisturbed, which
    mostly is before the first map; the others soon after a process has noted its first to fourth output. A shard that comes
    to its end before is started again all the same, and passes over what is there. Gives what happened.
    """
    out, whole, count = Path(request["out"]), Path(request["whole"]), 8
    chance = random.Random(request["seed"])
    began = time.monotonic()
    told = command([*request["line"], "--out", str(whole)], whole.with_suffix(".log"))
    assert told["code"] == 0, told
    reach = request["reach"] * (time.monotonic() - began)
    left = dict.fromkeys(range(1, count + 1), request["kills"])
    running: dict[int, tuple[int, float, int]] = {}

    def start(shard: int) -> None:
        instant, lines = math.inf, 0
        if left[shard] % 2:
            lines = chance.randint(1, 4)
        elif left[shard]:
            instant = time.monotonic() + chance.uniform(0.0, reach)
        words = [*request["line"], "--out", str(out), "--shard", f"{shard}/{count}"]

        def work() -> int:
            cli.main(words)
            return 0

        running[forked(work, out.with_suffix(f".{shard}.log"))] = shard, instant, lines

    def noted(shard: int, child: int) -> int:
        found = out.glob(f"manifest/{shard}-of-{count}-*-{child}-*.jsonl")
        return sum(path.read_bytes().count(b"\n") for path in found)

    for shard in left:
        start(shard)
    kills = finished = 0
    while running:
        for child, (shard, instant, lines) in list(running.items()):
            if lines and noted(shard, child) >= lines:
                time.sleep(chance.uniform(0.0, 0.01))
                os.kill(child, signal.SIGKILL)
            if time.monotonic() >= instant:
                os.kill(child, signal.SIGKILL)
            ended_, status = os.waitpid(child, os.WNOHANG)
            if not ended_:
                continue
            del running[child]
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, -signal.SIGKILL), out.with_suffix(f".{shard}.log").read_text()
            kills += code != 0
            finished += code == 0
            if left[shard]:
                left[shard] -= 1
                start(shard)
        time.sleep(0.002)
    return {"kills": kills, "finished": finished, "whole": reach / request["reach"]}


def command(line: list[str], output: Path) -> dict[str, Any]:
    """Run a command; gives its exit code and what it said."""

    def work() -> int:
        cli.main(line)
        return 0

    code = ended(forked(work, output))
    return {"code": code, "said": output.read_text()}


def room(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Train in file systems of `sizes` bytes, then in the same ones with more room; gives what was said each time.

    `mount` is where they are mounted; the run and the cache of pictures are in them. The folder of a finished run is moved to
    `kept`/SIZE.
    """
    told = []
    place, log = Path(request["mount"]), Path(request["kept"]) / "log"
    os.environ["MEMDIST_CACHE"] = str(place / "cache")
    for size in request["sizes"]:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "memdist-test", str(place)], check=True)
        try:
            small = command(request["line"], log)
            left = sorted(str(p.relative_to(place)) for p in place.rglob("*.tmp"))
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
            large = command(request["line"], log)
            used = subprocess.run(
                ["du", "-sb", "--apparent-size", str(place)], capture_output=True, text=True, check=True
            )
            # Time stamps and the like do not come along: only what was written.
            shutil.copytree(place / "run", Path(request["kept"]) / str(size))
            told.append({"small": small, "left": left, "large": large, "used": int(used.stdout.split()[0])})
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return told


def refused(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Run `lines` where a run is `copied` from, on a file system that is full, then read-only, then neither."""
    told = []
    place, log = Path(request["mount"]), Path(request["kept"]) / "log"
    os.environ["MEMDIST_CACHE"] = str(place / "cache")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "memdist-test", str(place)], check=True)
    try:
        shutil.copytree(request["copied"], place / "run")
        for state in ("full", "read-only", "fine"):
            if state == "full":
                with contextlib.suppress(OSError), open(place / "ballast", "wb", buffering=0) as ballast:
                    while ballast.write(bytes(4096)):
                        pass
            else:
                subprocess.run(["mount", "-o", f"remount,{'ro' if state == 'read-only' else 'rw'}", place], check=True)
            if state == "fine":
                (place / "ballast").unlink()
            told += [command(line, log) | {"state": state, "line": line} for line in request["lines"]]
    finally:
        subprocess.run(["umount", str(place)], check=True)
    return told


if __name__ == "__main__":
    known: dict[str, Callable[[dict[str, Any]], Any]] = {
        "kills": kills,
        "shards": shards,
        "room": room,
        "refused": refused,
    }
    print(json.dumps([known[asked["do"]](asked) for asked in json.loads(sys.argv[1])]))
