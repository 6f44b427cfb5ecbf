"""Checkpoints that are not what was written: passed over for the one before, and the run ends as if nothing had happened."""

import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from memdist import cli, locks, process, rundir
from memdist.errors import CheckpointError
from memdist.train import checkpoint, contents, evaluate, loop, whole
from memdist.train import step as step_
from tests import tiny
from tests.faults.asking import outcome

LAST = 14
FILES = [checkpoint.NETS, checkpoint.AVERAGES, checkpoint.OPTIM, checkpoint.STATE, checkpoint.MANIFEST]
MODEL = "palette"


class Killed(BaseException):
    """Ends a process's work on the spot, as SIGKILL does: nothing may follow it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("data"))


def settings(data: Path) -> Any:
    return tiny.run(MODEL, data, **{"checkpoint.every_minutes": 1e-9, "validate.steps": 1, "validate.images": 1})


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert loop.train(settings(data), out) == 0
    assert checkpoint.steps(out)[-2:] == [LAST - 1, LAST]
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def truncate(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda path: flip(path, path.stat().st_size // 2, 3),
    "half": lambda path: truncate(path, 0.5),
    "nothing in it": lambda path: path.write_bytes(b""),
    "absent": lambda path: path.unlink(),
    "garbage": lambda path: path.write_bytes(random.Random(0).randbytes(path.stat().st_size)),
    "a folder": lambda path: replace_by_folder(path),
}


def seal_anew(folder: Path) -> None:
    """Make the manifest true again, whatever the files hold."""
    manifest = {}
    for path in sorted(folder.iterdir()):
        if path.name != checkpoint.MANIFEST:
            content = path.read_bytes()
            manifest[path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))


def passed_over(run: Path, data: Path, finished: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Train on: the last checkpoint is passed over, told, and the end is that of the undisturbed run; gives what was said."""
    capfd.readouterr()
    assert loop.train(settings(data), run) == 0
    said = capfd.readouterr().out
    (told,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert f"the checkpoint of step {LAST} is passed over, as " in told
    assert f"it is kept as {run}/checkpoints/.corrupt-{LAST:010d}-1; training goes on from step {LAST - 1}" in told
    leg = rundir.read_json(run / rundir.PROVENANCE)["legs"][-1]
    assert leg["from_step"] == LAST - 1
    assert [entry["step"] for entry in leg["passed_over"]] == [LAST] and leg["passed_over"][0]["says"] == told
    assert (run / "checkpoints" / f".corrupt-{LAST:010d}-1").is_dir()
    assert outcome(run) == outcome(finished)
    return told


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["a flipped bit", *(pytest.param(h, marks=pytest.mark.slow) for h in list(HARMS)[1:])])
def test_a_torn_checkpoint_is_passed_over(
    name: str, harm: str, run: Path, data: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    HARMS[harm](checkpoint.folder(run, LAST) / name)
    passed_over(run, data, finished, capfd)


# State that was never written by memdist, and whose checksum is right all the same.
STATES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "of another step": (lambda s: s.update(step=3), "is not of step 14"),
    "no step": (lambda s: s.pop("step"), "is not of step 14"),
    "negative lengths": (lambda s: s["lengths"].update(metrics=-5), "no numbers of bytes"),
    "no lengths": (lambda s: s.pop("lengths"), "no numbers of bytes"),
    "a selection of words": (lambda s: s.update(selection="best"), "it has no selection"),
    "a selection of more": (lambda s: s["selection"].update(colour=1), "it has no selection"),
    "a best step to come": (lambda s: s["selection"].update(step=99), "its best step is 99"),
    "a best value of words": (lambda s: s["selection"].update(value="high"), "values that are no numbers"),
    "seconds of words": (lambda s: s.update(seconds="long"), "it took 'long' seconds"),
    "sums of fewer": (lambda s: s["sums"]["names"].append("x"), "its sums of losses are no numbers"),
    "no sums": (lambda s: s.update(sums=None), "its sums of losses are no numbers"),
    "no scalers": (lambda s: s.update(scalers=[]), "its loss scalers are incomplete"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_cannot_be_is_found_out(name: str, run: Path) -> None:
    change, says = STATES[name]
    path = checkpoint.folder(run, LAST)
    state = json.loads((path / checkpoint.STATE).read_text())
    change(state)
    (path / checkpoint.STATE).write_text(json.dumps(state))
    seal_anew(path)
    assert says in str(checkpoint.harm(run, LAST) or whole.state_fault(state))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"' * 9, b"[" * 100_000, b"1e999", b"{}"])
def test_a_state_that_is_no_state_is_passed_over(
    text: bytes, run: Path, data: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (checkpoint.folder(run, LAST) / checkpoint.STATE).write_bytes(text)
    seal_anew(checkpoint.folder(run, LAST))
    assert checkpoint.harm(run, LAST)
    if text == b"{":
        passed_over(run, data, finished, capfd)


@pytest.mark.parametrize("how", ["no tensors", "other shapes", "one tensor less", "a weight nobody has"])
def test_tensors_that_do_not_fit_are_passed_over(
    how: str, run: Path, data: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint.folder(run, LAST)
    name = checkpoint.OPTIM if how == "a weight nobody has" else checkpoint.NETS
    tensors = load_file(path / name)
    first = sorted(tensors)[0]
    if how == "no tensors":
        (path / name).write_bytes(b"no tensors at all, but a true checksum")
    elif how == "other shapes":
        save_file({**tensors, first: torch.zeros(3, 5, 7)}, path / name)
    elif how == "one tensor less":
        save_file({key: value for key, value in tensors.items() if key != first}, path / name)
    else:
        save_file({**tensors, "nobody": torch.zeros(1)}, path / name)
    seal_anew(path)
    told = passed_over(run, data, finished, capfd)
    assert f"{name} holds no tensors" in told if how == "no tensors" else f"{name} does not fit" in told


def test_every_flip_and_every_cut_is_found(tmp_path: Path) -> None:
    """Every byte of the small files, and many of the large ones, a bit at a time; every file cut at many places."""
    checkpoint.save(tmp_path, 3, {"net": torch.nn.Linear(4, 2)}, {}, {"a": [1, 2, 3]})
    folder, chance = checkpoint.folder(tmp_path, 3), random.Random(0)
    assert checkpoint.harm(tmp_path, 3) is None
    for name in FILES:
        path = folder / name
        content = path.read_bytes()
        for place in range(len(content)):
            flip(path, place, chance.randrange(8))
            assert checkpoint.harm(tmp_path, 3), (name, place)
            path.write_bytes(content)
        for length in {0, 1, 7, 8, len(content) - 1, *(chance.randrange(len(content)) for _ in range(8))}:
            path.write_bytes(content[:length])
            assert checkpoint.harm(tmp_path, 3), (name, length)
        path.write_bytes(content + b"\0")
        assert checkpoint.harm(tmp_path, 3) or name == checkpoint.MANIFEST
        path.write_bytes(content)
    assert checkpoint.harm(tmp_path, 3) is None


def test_where_none_is_whole_nothing_is_touched(
    run: Path, data: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for step in checkpoint.steps(run):
        flip(checkpoint.folder(run, step) / checkpoint.NETS, -1, 0)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and rundir.LOCK not in path.name}
    with pytest.raises(
        CheckpointError, match=r"none of the \d checkpoints of .* is whole \(of step 14: nets.*nothing was"
    ):
        loop.train(settings(data), run)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and rundir.LOCK not in path.name}
    assert after == before
    for choice in ("best", "last"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", str(run), "--checkpoint", choice])
        assert ended.value.code == 2 and "Traceback" not in capfd.readouterr().err


def everything(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and rundir.LOCK not in path.name}


@pytest.mark.parametrize("gone", ["the folder", "what is in it"])
@pytest.mark.parametrize("ended", ["finished", "killed", "as an older memdist wrote it"])
def test_a_run_that_has_lost_its_checkpoints_does_not_begin_again(
    ended: str, gone: str, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ended == "killed":
        run, taken = tmp_path / "killed", step_.take_step

        def take_step(session: Any, *rest: Any) -> None:
            taken(session, *rest)
            if session.step == 3:
                monkeypatch.setattr(loop.Leg, "note", lambda *_: None)
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(step_, "take_step", take_step)
            loop.train(settings(data), run)
        monkeypatch.undo()
        assert rundir.read_json(run / rundir.STATE)["state"] == "running" and checkpoint.steps(run)
    elif ended != "finished":
        state = rundir.read_json(run / rundir.STATE)
        del state["saved"]
        rundir.write_json(run / rundir.STATE, state)
    shutil.rmtree(run / rundir.CHECKPOINTS)
    if gone == "what is in it":
        (run / rundir.CHECKPOINTS).mkdir()
    before = everything(run)
    with pytest.raises(
        CheckpointError, match="has lost all its checkpoints: state.json says .*--out.* removing this one"
    ):
        loop.train(settings(data), run)
    assert everything(run) == before
    shutil.rmtree(run)
    assert loop.train(settings(data), run) == 0


@pytest.mark.parametrize("left", [None, 0, 0.3, 0.9])
def test_lines_that_were_lost_are_told_and_none_is_joined(
    left: float | None, run: Path, data: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(checkpoint.folder(run, LAST))
    metrics, whole_lines = run / rundir.METRICS, rundir.read_lines(run / rundir.METRICS)
    had = json.loads((checkpoint.folder(run, LAST - 1) / checkpoint.STATE).read_text())["lengths"]["metrics"]
    kept = b""
    if left is None:
        metrics.unlink()
    else:
        kept = metrics.read_bytes()[: int(had * left)]
        metrics.write_bytes(kept)
    assert not kept or not kept.endswith(b"\n")
    capfd.readouterr()
    assert loop.train(settings(data), run) == 0
    (told,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning: ")]
    what = "is not there" if left is None else f"has {len(kept)} bytes"
    assert f"{metrics} {what}, where it had {had} at the checkpoint of step {LAST - 1}: lines" in told
    (lost,) = rundir.read_json(run / rundir.PROVENANCE)["legs"][-1]["lost_lines"]
    assert lost == {"file": rundir.METRICS, "bytes": len(kept), "had": had, "says": told}
    # What is left of the old lines, then all that came after the checkpoint.
    after = [line for line in whole_lines if line["step"] == LAST]
    assert rundir.read_lines(metrics) == whole_lines[: kept.count(b"\n")] + after
    # It is told once: the next checkpoint knows the file as it is.
    assert loop.train(settings(data), run) == 0
    assert "warning" not in capfd.readouterr().out


@pytest.mark.parametrize("when", ["within a checkpoint", "before the start"])
def test_who_was_followed_meanwhile_removes_nothing(
    when: str, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stalls, another process follows and writes checkpoints of its own, and it wakes before it would let old ones go."""
    follower = dataclasses.replace(process.this(), host="node7", boot="b")

    def follow() -> None:
        top = max(int(path.suffix[1:]) for path in run.glob(f"{rundir.LOCK}.*"))
        (run / f"{rundir.LOCK}.{top + 1}").write_bytes(locks._text(follower, "0" * 32, 0, False))
        for step in range(1, 5):
            shutil.copytree(checkpoint.folder(run, LAST), checkpoint.folder(run, step), dirs_exist_ok=True)

    if when == "within a checkpoint":
        shutil.rmtree(checkpoint.folder(run, LAST))
        checkpoint.save(run, LAST, {}, {}, {})  # set aside as torn
        write = contents.write

        def slowly(*rest: Any) -> None:
            write(*rest)
            follow()

        monkeypatch.setattr(contents, "write", slowly)
    else:
        run_of = loop.Leg.run

        def late(leg: loop.Leg, words: Any) -> Any:
            follow()
            return run_of(leg, words)

        monkeypatch.setattr(loop.Leg, "run", late)
    with pytest.raises(CheckpointError, match="process .* on node7 has taken .* over"):
        loop.train(settings(data), run)
    assert {1, 2, 3, 4, LAST} <= set(checkpoint.steps(run))


def test_of_those_set_aside_the_latest_stay(tmp_path: Path) -> None:
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, {}, {}, {"selection": {"step": None}})
    choice = whole.choose(tmp_path, lambda step: "it is torn" if step > 1 else None)
    assert choice.step == 1 and [entry["step"] for entry in choice.passed] == [6, 5, 4, 3, 2]
    checkpoint.save(tmp_path, 2, {}, {}, {"selection": {"step": None}})
    whole.choose(tmp_path, lambda step: "it is torn" if step > 1 else None)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [".corrupt-0000000002-5", ".corrupt-0000000002-6", ".corrupt-0000000003-4", "0000000001"]


@pytest.mark.parametrize("harm", ["absent", "a flipped bit"])
def test_a_lost_best_is_told_and_training_goes_on(
    harm: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # The first validation stays the best, as no later one is 5 better.
    more = {"select.metric": "val/cc", "select.min_delta": 5, "checkpoint.every_minutes": 1e-9}
    run = tiny.run("unet", data, **more)
    assert loop.train(run, tmp_path / "run") == 0
    best = rundir.read_json(tmp_path / "run" / rundir.STATE)["best"]["step"]
    # 9: what the checkpoint before would go back to.
    assert checkpoint.steps(tmp_path / "run") == [best, 9, LAST - 1, LAST]
    folder = checkpoint.folder(tmp_path / "run", best)
    shutil.rmtree(folder) if harm == "absent" else flip(folder / checkpoint.NETS, -1, 0)
    if harm == "a flipped bit":
        with pytest.raises(SystemExit):
            cli.main(["evaluate", str(tmp_path / "run")])
        assert (
            f"the checkpoint {folder} cannot be used: nets.safetensors is not what was written"
            in capfd.readouterr().err
        )
    assert loop.train(tiny.run("unet", data, **more, epochs=4), tmp_path / "run") == 0
    assert f"warning: the best checkpoint, of step {best}, is lost, as " in capfd.readouterr().out
    # The first validation after it is the best of those that are left, and what the run is scored by.
    chosen = rundir.read_json(tmp_path / "run" / rundir.STATE)["best"]["step"]
    assert chosen > LAST and chosen in checkpoint.steps(tmp_path / "run")
    evaluate.evaluate(tmp_path / "run", ["test"])


def test_who_only_reads_passes_over_and_moves_nothing(
    run: Path, data: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flip(checkpoint.folder(run, LAST) / checkpoint.NETS, -1, 0)
    before = sorted(run.rglob("*"))
    picture = str(next((data / "images").iterdir()))
    line = ["predict", str(run), picture, "--out", str(tmp_path / "maps"), "eval.steps=1", "--checkpoint"]
    for choice, code in (("last", 0), (str(LAST - 1), 0), (str(LAST), 2)):
        try:
            cli.main([*line, choice])
            ended = 0
        except SystemExit as end:
            ended = int(end.code or 0)
        said = capfd.readouterr().err
        assert ended == code, said
        if choice == "last":
            assert f"memdist: warning: the checkpoint of step {LAST} is passed over: nets.safetensors is not" in said
        if code:
            assert "nets.safetensors is not what was written (checksum); name another one with --checkpoint" in said
    assert sorted(run.rglob("*")) == before


def test_a_disk_that_refuses_is_no_torn_checkpoint(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> dict[str, Any]:
        raise OSError(116, "Stale file handle", str(path))

    before = sorted(run.rglob("*"))
    monkeypatch.setattr(checkpoint, "_seal", refuse)
    with pytest.raises(CheckpointError, match="stale file handle; nothing was changed"):
        loop.train(settings(data), run)
    assert [p for p in sorted(run.rglob("*")) if ".lock." not in p.name] == [
        p for p in before if ".lock." not in p.name
    ]


def test_what_an_older_memdist_did_not_write_yet_is_as_if_nothing_had_happened(run: Path, data: Path) -> None:
    for step in checkpoint.steps(run):
        folder = checkpoint.folder(run, step)
        state = json.loads((folder / checkpoint.STATE).read_text())
        for key in ("watch", "anchor", "rollbacks", "before"):
            del state[key]
        (folder / checkpoint.STATE).write_text(json.dumps(state))
        manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
        sealed = {name: checkpoint._seal(folder / name) for name in manifest}
        (folder / checkpoint.MANIFEST).write_text(json.dumps(sealed))
    assert loop.train(tiny.run(MODEL, data, **{"epochs": 4, "validate.steps": 1, "validate.images": 1}), run) == 0
    evaluate.evaluate(run, ["test"], choice="last")
