"""Checkpoints that are written while training goes on: what they hold, who waits for whom, and what a death leaves."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from memdist.distributed import strategy as strategy_
from memdist.errors import CheckpointError
from memdist.train import checkpoint, contents, loop, start
from memdist.train.loop import Leg
from memdist.train.signals import Signals
from memdist.train.tensorfile import TensorFile
from tests import tiny

ROOT = Path(__file__).parents[2]


def settings(folder: Path, **more: Any) -> Any:
    return tiny.run("pix2pix", folder / "data", **{"epochs": 40, "checkpoint.every": 100, "log.images": 0, **more})


@pytest.fixture
def leg(tmp_path: Path) -> Iterator[Leg]:
    tiny.data(tmp_path / "data")
    run = settings(tmp_path)
    with Signals() as signals:
        session = start.open_session(run, tmp_path / "run", strategy_.make(run), start.build(run), extend=False)
        made = loop.Leg(session, signals)
        yield made
        made.ledger.close()


def weights(leg: Leg) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, net in leg.session.stage.nets.items()
        for key, value in net.state_dict().items()
    }


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set no checkpoint but the first is written."""
    opened, write, seen = threading.Event(), contents.write, []

    def waiting(run: Path, step: int, *rest: Any) -> None:
        seen.append(step)
        assert len(seen) == 1 or opened.wait(60)
        write(run, step, *rest)

    monkeypatch.setattr(contents, "write", waiting)
    return opened


def test_training_goes_on_while_a_checkpoint_is_written(leg: Leg, gate: threading.Event) -> None:
    out = leg.session.out
    with leg.loader() as loader:
        leg.advance(loader)
        leg.save()
        leg.advance(loader)
        leg.save()
        then = weights(leg)
        for _ in range(2):
            leg.advance(loader)
        assert leg.session.step == 4 and checkpoint.steps(out) == [1]
        gate.set()
        leg.saver.wait()
    assert checkpoint.steps(out) == [1, 2]
    # What it holds is the step at which it was asked for, whatever came after.
    with checkpoint.reading(out, 2, checkpoint.NETS) as fetch:
        for key, value in then.items():
            assert torch.equal(fetch(key, 0, value.numel()), value.reshape(-1))
    assert any(not torch.equal(value, weights(leg)[key]) for key, value in then.items())


def test_a_second_request_waits_for_the_first(leg: Leg, gate: threading.Event) -> None:
    with leg.loader() as loader:
        for step in (1, 2, 3):
            leg.advance(loader)
            if step < 3:
                leg.save()
        asked = threading.Event()

        def release() -> None:
            assert asked.wait(60)
            assert checkpoint.steps(leg.session.out) == [1]
            gate.set()

        other = threading.Thread(target=release)
        other.start()
        asked.set()
        leg.save()
        # The second one is whole before the third is begun.
        assert 2 in checkpoint.steps(leg.session.out)
        leg.saver.wait()
        other.join()
    assert checkpoint.steps(leg.session.out) == [2, 3]


def test_what_is_under_way_is_dropped_where_another_process_follows(leg: Leg, gate: threading.Event) -> None:
    def gone() -> None:
        raise CheckpointError("process 9 on node7 has taken it over")

    with leg.loader() as loader:
        for _ in range(2):
            leg.advance(loader)
            leg.save()
        leg.session.still_ours = gone
        gate.set()
        with pytest.raises(CheckpointError, match="taken it over"):
            leg.saver.wait()
    assert [path.name for path in checkpoint.folder(leg.session.out, 1).parent.iterdir()] == ["0000000001"]


def test_a_disk_that_is_full_leaves_the_checkpoint_before(leg: Leg, monkeypatch: pytest.MonkeyPatch) -> None:
    with leg.loader() as loader:
        leg.advance(loader)
        leg.save()
        leg.saver.wait()
        whole = {path.name: path.read_bytes() for path in checkpoint.folder(leg.session.out, 1).iterdir()}

        def full(self: TensorFile, *_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "nets.safetensors")

        monkeypatch.setattr(TensorFile, "put", full)
        leg.advance(loader)
        leg.save()
        leg.advance(loader)
        with pytest.raises(CheckpointError, match="no space left on device"):
            leg.save()
    assert checkpoint.steps(leg.session.out) == [1]
    assert whole == {path.name: path.read_bytes() for path in checkpoint.folder(leg.session.out, 1).iterdir()}
    assert [path.name for path in checkpoint.folder(leg.session.out, 1).parent.iterdir()] == ["0000000001"]


def test_a_kill_while_it_is_written_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    tiny.data(tmp_path / "data")
    code = """
import os, signal, sys
from pathlib import Path
from memdist.train import loop
from memdist.train.tensorfile import TensorFile
from tests.faults import test_saving

put, opened = TensorFile.put, []

def deadly(self, name, start, flat):
    if self not in opened:
        opened.append(self)
    # The seventh file is the first of the third checkpoint.
    if len(opened) == 7 and name.endswith("output.weight"):
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, name, start, flat)

if sys.argv[2] == "dies":
    TensorFile.put = deadly
folder = Path(sys.argv[1])
run = test_saving.settings(folder, **{"checkpoint.every_minutes": 1e-9, "epochs": 2})
sys.exit(loop.train(run, folder / sys.argv[3]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def train(*words: str) -> int:
        command = [sys.executable, "-c", code, str(tmp_path), *words]
        return subprocess.run(command, env=environment, capture_output=True, timeout=120, cwd=ROOT).returncode

    assert train("dies", "killed") == -9
    found = checkpoint.steps(tmp_path / "killed")
    assert len(found) == 2 and all(checkpoint.harm(tmp_path / "killed", step) is None for step in found)
    assert train("lives", "killed") == train("lives", "whole") == 0
    for name in ("nets.safetensors", "optim.safetensors"):
        last = [checkpoint.folder(tmp_path / out, checkpoint.steps(tmp_path / out)[-1]) for out in ("killed", "whole")]
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes()
