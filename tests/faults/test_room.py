"""File systems that are full, read-only or gone: one sentence, nothing torn, and with room the run ends as any other."""

import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from memdist import config, models, rundir
from memdist.errors import CheckpointError
from memdist.predict import pictures
from memdist.train import checkpoint, loop
from memdist.train import step as step_
from tests import tiny
from tests.faults.asking import ask, outcome

mounts = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None,
    reason="needs root to mount file systems",
)
MIB = 2**20


def lines_of(tmp_path: Path) -> tuple[list[str], Path]:
    """A command that trains into tmp_path/mount/run; and the settings it reads."""
    raw = tiny.raw(
        "unet",
        tiny.data(tmp_path / "data"),
        **{"checkpoint.every_minutes": 1e-9, "log.tensorboard": "true", "epochs": 2},
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    (tmp_path / "mount").mkdir()
    (tmp_path / "kept").mkdir()
    return ["train", str(path), "--out", str(tmp_path / "mount" / "run")], path


def sentence(told: dict[str, Any]) -> str:
    """The one sentence of a command that was refused."""
    assert told["code"] == 2, told
    assert "Traceback" not in told["said"] and "Error" not in told["said"], told["said"]
    (said,) = [line for line in told["said"].splitlines() if line.startswith("memdist: ")]
    return said


def sites(tmp_path: Path, count: int, first: int = 0) -> list[str]:
    """Train in file systems of `count` sizes, from nothing at all to everything; gives the sentences."""
    line, _ = lines_of(tmp_path)
    request = {"do": "room", "line": line, "mount": str(tmp_path / "mount"), "kept": str(tmp_path / "kept")}
    (roomy,) = ask([request | {"sizes": [64 * MIB]}])[0]
    assert roomy["small"]["code"] == 0, roomy
    whole = outcome(tmp_path / "kept" / str(64 * MIB))
    pages = roomy["used"] // 4096
    sizes = sorted({4096 * max(2, pages * k // count) for k in range(first, count)})
    said = []
    for size, told in zip(sizes, ask([request | {"sizes": sizes}])[0], strict=True):
        if told["small"]["code"] != 0:  # the last sizes may do, as what is removed makes room
            said.append(sentence(told["small"]))
            assert re.search("no space left on device.*make room", said[-1]), said
        assert told["left"] == [], told
        assert told["large"]["code"] == 0, told["large"]["said"]
        assert outcome(tmp_path / "kept" / str(size)) == whole, (size, told["small"]["said"])
    return said


@mounts
def test_training_on_full_disks(tmp_path: Path) -> None:
    said = sites(tmp_path, 4, first=1)
    assert len(said) >= 2


@mounts
@pytest.mark.slow
def test_training_on_full_disks_of_many_sizes(tmp_path: Path) -> None:
    said = sites(tmp_path, 24)
    print(*dict.fromkeys(re.sub(r"/tmp\S*/mount/", "", text) for text in said), sep="\n")
    places = [
        where for text in said for where in re.findall(r"cache of decoded|config|checkpoints/|jsonl|lock|json", text)
    ]
    assert {"cache of decoded", "checkpoints/"} <= set(places), said
    assert any("no checkpoint was written yet" in text for text in said), said
    assert any(
        re.search(r"the checkpoint of step \d+ is safe, and the same command goes on from there", t) for t in said
    )


@mounts
def test_scoring_and_predicting_on_full_and_read_only_disks(tmp_path: Path) -> None:
    line, path = lines_of(tmp_path)
    assert loop.train(models.resolve(config.read(path)), tmp_path / "copied") == 0
    run, picture = str(tmp_path / "mount" / "run"), str(next((tmp_path / "data" / "images").iterdir()))
    lines = [["evaluate", run], ["predict", run, picture, "--out", run + "/maps"], [*line, "epochs=3"]]
    lines.append(["export", run, "--out", str(tmp_path / "mount" / "exported")])
    request = {"do": "refused", "lines": lines, "copied": str(tmp_path / "copied"), "kept": str(tmp_path / "kept")}
    (told,) = ask([request | {"mount": str(tmp_path / "mount")}])
    assert len(told) == 12
    for answer in told:
        if answer["state"] == "fine":
            assert answer["code"] == 0, answer
        else:
            why = {"full": "no space left on device", "read-only": "read-only file system"}[answer["state"]]
            assert why in sentence(answer), answer


@mounts
def test_predicting_on_full_disks(tmp_path: Path) -> None:
    """Room for nothing, for a part and for nearly all: one sentence, whole maps, and with room the others."""
    _, path = lines_of(tmp_path)
    assert loop.train(models.resolve(config.read(path)), tmp_path / "trained") == 0
    images, out = str(tmp_path / "data" / "images"), tmp_path / "mount" / "run"
    line = ["predict", str(tmp_path / "trained"), images, "--out", str(out), "eval.batch=4"]
    request = {"do": "room", "line": line, "mount": str(tmp_path / "mount"), "kept": str(tmp_path / "kept")}
    sizes = [64 * MIB, *(4096 * pages for pages in (1, 3, 12, 24))]
    (told,) = ask([request | {"sizes": sizes}])

    def maps(size: int) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "kept" / str(size)).glob("*.png")}

    whole = maps(sizes[0])
    assert len(whole) == tiny.PAIRS and told[0]["small"]["code"] == 0
    there = []
    for size, answer in zip(sizes[1:], told[1:], strict=True):
        assert re.search("no space left on device.*make room", sentence(answer["small"])), answer
        assert answer["left"] == [] and answer["large"]["code"] == 0, answer
        assert maps(size) == whole
        there.append(int(re.findall(r"\((\d+) w(?:ere|as) there\)", answer["large"]["said"])[0]))
        report = pictures.predict(
            tmp_path / "trained", [Path(images)], tmp_path / "kept" / str(size), overrides=["eval.batch=4"], verify=True
        )
        assert report.clean, report
    assert there[0] == 0 and sorted(there) == there and 0 < there[-1] < tiny.PAIRS, there


# Faults of single writes, without a file system of one's own


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.data(tmp_path / "data")


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    taken = step_.take_step

    def take_step(session: Any, *rest: Any) -> None:
        taken(session, *rest)
        if session.step == step:
            act()

    monkeypatch.setattr(step_, "take_step", take_step)


def test_a_folder_that_vanishes_is_not_made_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    at_step(monkeypatch, 5, lambda: shutil.rmtree(run))
    with pytest.raises(CheckpointError, match="cannot write .*run: no such file or directory"):
        loop.train(tiny.run("unet", data), run)
    assert not run.exists()


def test_a_run_that_was_taken_over_writes_no_more(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    before: dict[Path, bytes] = {}

    def there() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def take_over() -> None:
        for thread in threading.enumerate():
            if thread.name == "checkpoint":  # what it writes is from before
                thread.join()
        record = (run / ".lock.1").read_bytes().replace(b'"pid": ', b'"pid": 9')
        (run / ".lock.2").write_bytes(record)
        (run / ".lock.1").unlink()
        before.update(there())

    at_step(monkeypatch, 7, take_over)
    with pytest.raises(CheckpointError, match=r"process 9\d+ on .* has taken .* over, as this process showed no life"):
        loop.train(tiny.run("unet", data, **{"checkpoint.every_minutes": 1e-9}), run)
    assert there() == before


def test_a_full_disk_ends_tensorboard_with_one_warning(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from memdist.train.board import Board

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    at_step(monkeypatch, 5, lambda: monkeypatch.setattr(Board, "_write", refuse))
    run = tiny.run("unet", data, **{"log.tensorboard": "true"})
    assert loop.train(run, tmp_path / "run") == 0
    said = capfd.readouterr().out
    assert (
        said.count("warning: nothing more is written for TensorBoard until the next start: no space left on device")
        == 1
    )


def test_what_went_wrong_first_is_told_when_the_state_cannot_be_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fault(Exception):
        pass

    def fail() -> None:
        shutil.rmtree(tmp_path / "run")
        raise Fault

    at_step(monkeypatch, 5, fail)
    with pytest.raises(Fault):
        loop.train(tiny.run("unet", data), tmp_path / "run")


def test_a_library_that_finds_no_room_says_so_like_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch
    from safetensors import SafetensorError

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*0000000003: no space left on device; .* make room"):
        checkpoint.save(tmp_path, 3, {}, {}, {})
    assert list((tmp_path / rundir.CHECKPOINTS).iterdir()) == []
