"""Maps of many pictures, each exactly once: run again, in shares, after faults, with other settings, and proved."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from memdist import cli, rundir
from memdist.errors import CheckpointError, ConfigError
from memdist.predict import folder as folder_
from memdist.predict import pictures, record
from memdist.predict.report import Report
from memdist.train import loop, mapper
from tests import tiny

K3 = ["eval.samples=3", "eval.steps=3", "eval.batch=8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("runs")
    data = tiny.data(tmp / "data")
    made = {"data": data / "images"}
    for name in ("unet", "palette"):
        made[name] = tmp / name
        assert loop.train(tiny.run(name, data, epochs=1), made[name]) == 0
    return made


@pytest.fixture
def inputs(runs: dict[str, Path], tmp_path: Path) -> Path:
    """Ten pictures that a test may harm, of several sizes."""
    place = tmp_path / "in"
    place.mkdir()
    for number, path in enumerate(sorted(runs["data"].iterdir())[:10]):
        with Image.open(path) as picture:
            picture.resize((16 + 3 * number, 24)).save(place / f"{path.stem}.png")
    return place


@pytest.fixture(scope="module")
def made(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps of two pictures by palette, which no test changes."""
    out = tmp_path_factory.mktemp("made") / "out"
    sound(pictures.predict(runs["palette"], sorted(runs["data"].iterdir())[:2], out))
    return out


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were sampled, batch by batch."""
    counts: list[int] = []
    sample = mapper.Mapper.sample

    def counted(self: mapper.Mapper, image: torch.Tensor, seeds: torch.Tensor, *rest: Any) -> torch.Tensor:
        counts.append(len(image))
        return sample(self, image, seeds, *rest)

    monkeypatch.setattr(mapper.Mapper, "sample", counted)
    return counts


def outputs(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*.png"))
        if "sheets" not in path.parts
    }


def pixels(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(float)


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(out.rglob("*")) if path.is_file()}


def sound(report: Report) -> str:
    assert report.clean, report
    return report.sentence


def verified(run: Path, given: Path, out: Path, **settings: Any) -> Report:
    before = times(out)
    report = pictures.predict(run, [given], out, verify=True, **settings)
    assert times(out) == before
    return report


def command(*line: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in line])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("name", ["unet", "palette"])
def test_run_again_predicts_nothing(
    name: str, runs: dict[str, Path], inputs: Path, tmp_path: Path, sampled: list[int]
) -> None:
    out = tmp_path / "out"
    assert sound(pictures.predict(runs[name], [inputs], out)) == f"10 maps in {out} (0 were there)"
    assert sum(sampled) >= 10
    before = times(out)
    sampled.clear()
    assert sound(pictures.predict(runs[name], [inputs], out)) == f"10 maps in {out} (10 were there)"
    assert sampled == [] and times(out) == before
    assert verified(runs[name], inputs, out).sentence == (
        f"10 outputs of 10 pictures in {out}: each is there once, whole, and nothing else is"
    )
    lines = [json.loads(line) for path in (out / "manifest").iterdir() for line in path.read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == sorted(outputs(out))
    assert all(
        line["seconds"] > 0 and set(line) == {"name", "input", "sha256", "settings", "seconds"} for line in lines
    )
    assert pixels(out / "scene-00003.png").shape == pixels(inputs / "scene-00003.png").shape == (24, 25, 3)


def test_what_is_torn_foreign_gone_or_of_another_picture_is_done_again(
    runs: dict[str, Path], inputs: Path, tmp_path: Path, sampled: list[int]
) -> None:
    out = tmp_path / "out"
    sound(pictures.predict(runs["unet"], [inputs], out))
    whole = outputs(out)
    torn, foreign, gone, changed = sorted(out.glob("*.png"))[2:6]
    torn.write_bytes(torn.read_bytes()[:-20])
    shutil.copy(out / "scene-00009.png", foreign)
    gone.unlink()
    shutil.copy(inputs / "scene-00000.png", inputs / changed.name)
    report = verified(runs["unet"], inputs, out)
    found = {kind: [line.split(" (of")[0] for line in lines] for kind, lines in report.problems.items() if lines}
    assert found == {
        "missing": [str(gone)],
        "damaged, or not made here": [str(torn), str(foreign)],
        "made of pictures that have changed since": [str(changed)],
    }
    sampled.clear()
    assert sound(pictures.predict(runs["unet"], [inputs], out)) == f"10 maps in {out} (6 were there)"
    assert sum(sampled) == 4
    again = outputs(out)
    assert again.pop(changed.name) == whole["scene-00000.png"]
    whole.pop(changed.name)
    assert again == whole
    sound(verified(runs["unet"], inputs, out))


def test_a_damaged_manifest_costs_only_its_outputs(
    runs: dict[str, Path], inputs: Path, tmp_path: Path, sampled: list[int]
) -> None:
    out = tmp_path / "out"
    sound(pictures.predict(runs["unet"], [inputs], out))
    whole = outputs(out)
    (path,) = (out / "manifest").iterdir()
    data = bytearray(path.read_bytes())
    lines = path.read_bytes().splitlines(keepends=True)
    data[len(lines[0]) + 5] ^= 0xFF  # within the second
    path.write_bytes(bytes(data[:-30]))  # and the last one torn
    assert "2 damaged" in "\n".join(verified(runs["unet"], inputs, out).lines())
    sampled.clear()
    assert sound(pictures.predict(runs["unet"], [inputs], out)) == f"10 maps in {out} (8 were there)"
    assert sum(sampled) == 2 and outputs(out) == whole
    sound(verified(runs["unet"], inputs, out))


def test_verify_finds_what_is_no_output(runs: dict[str, Path], inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sound(pictures.predict(runs["unet"], [inputs], out))
    (out / "deep").mkdir()
    strange = ["deep/scene-00001.png", "notes.txt", ".scene.png.0-1-2-3.tmp", "manifest/x.txt", "scene-00077.png"]
    for name in strange:
        (out / name).write_text("x")
    (out / "link").symlink_to(inputs)
    report = verified(runs["unet"], inputs, out)
    (found,) = ({*lines} for lines in report.problems.values() if lines)
    assert found == {str(out / name) for name in [*strange, "link"]}
    assert command("predict", runs["unet"], inputs, "--out", out, "--verify") == 1
    for name in [*strange, "link"]:
        (out / name).unlink()
    assert command("predict", runs["unet"], inputs, "--out", out, "--verify") == 0
    with pytest.raises(CheckpointError, match=r"has no predict\.json, so that there is nothing to verify"):
        pictures.predict(runs["unet"], [inputs], tmp_path / "nowhere", verify=True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("samples", [0, 2])
def test_files_of_others_are_not_written_over(
    samples: int, runs: dict[str, Path], inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "maps"
    theirs = out / ("samples/scene-00003.2.png" if samples else "scene-00003.png")
    theirs.parent.mkdir(parents=True)
    theirs.write_text("true")
    (out / "other.png").touch()
    line = (
        "predict",
        runs["palette"],
        inputs,
        "--out",
        out,
        "--steps",
        1,
        *(("--each", "--samples", 2) * bool(samples)),
    )
    with pytest.raises(CheckpointError, match="is there already, and .* has no predict.json .* name another folder"):
        pictures.predict(
            runs["palette"], [inputs], out, overrides=["eval.steps=1", "eval.samples=2"], each=bool(samples)
        )
    assert command(*line) == 2
    assert theirs.read_text() == "true" and len([path for path in out.rglob("*") if path.is_file()]) == 2
    theirs.unlink()
    assert command(*line) == 0
    (out / "predict.json").unlink()  # the lines still say whose the maps are
    assert command(*line) == 0


def test_a_run_folder_is_no_place_for_maps(runs: dict[str, Path], inputs: Path) -> None:
    before = times(runs["unet"])
    with pytest.raises(CheckpointError, match="is a run folder, which is no place for maps: name another folder"):
        pictures.predict(runs["palette"], [inputs], runs["unet"])
    assert times(runs["unet"]) == before


def test_an_empty_path_is_none(runs: dict[str, Path], inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ((inputs, "--out", ""), ("", "--out", "maps")):
        assert command("predict", runs["unet"], *given) == 2
        assert "a path that was given is empty" in capsys.readouterr().err


def test_pictures_may_lie_within_the_folder_of_maps(runs: dict[str, Path], inputs: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(inputs, place / "in")
    sound(pictures.predict(runs["unet"], [place / "in"], place))
    sound(verified(runs["unet"], place / "in", place))


def test_unreadable_pictures_are_named_and_the_others_done(
    runs: dict[str, Path], inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    good = {path.name: path.read_bytes() for path in inputs.iterdir()}
    (inputs / "scene-00002.png").write_text("I am no picture")
    (inputs / "scene-00007.png").write_bytes(good["scene-00007.png"][:60])
    line = ("predict", runs["unet"], inputs, "--out", out)
    for there in (0, 8):
        assert command(*line) == 1
        said = capfd.readouterr().out.splitlines()
        assert said[:2] == [f"8 maps in {out} ({there} were there)", "2 pictures could not be read:"]
        assert [name in text for name, text in zip(("00002", "00007"), said[2:], strict=True)] == [True, True]
    assert len(outputs(out)) == 8 and command(*line, "--verify") == 1
    for name, data in good.items():
        (inputs / name).write_bytes(data)
    assert command(*line) == 0 and capfd.readouterr().out.splitlines()[-1] == f"10 maps in {out} (8 were there)"
    assert command(*line, "--verify") == 0


def test_nothing_but_unreadable_pictures(
    runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("words")
    assert command("predict", runs["unet"], tmp_path / "text.txt", "--out", tmp_path / "out") == 1
    said = capfd.readouterr()
    assert said.out.splitlines()[1] == "1 picture could not be read:" and "Traceback" not in said.err
    assert f"{tmp_path}/text.txt cannot be read as a picture" in said.out
    assert outputs(tmp_path / "out") == {}


def test_a_picture_that_changes_while_it_is_read(
    runs: dict[str, Path], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memdist.data import pairs

    decode, target = pairs.View.decode, inputs / "scene-00004.png"
    turns = iter([True, False])

    def touched(self: pairs.View, part: pairs.Part) -> Any:
        pixels = decode(self, part)
        if part[0] == target and next(turns, always):
            target.write_bytes(target.read_bytes() + b"x")
        return pixels

    always = False
    monkeypatch.setattr(pairs.View, "decode", touched)
    sound(pictures.predict(runs["unet"], [inputs], tmp_path / "out"))  # read again, and then of one piece
    always = True
    target.write_bytes(target.read_bytes() + b"y")
    report = pictures.predict(runs["unet"], [inputs], tmp_path / "out")
    assert "scene-00004.png changes while it is read" in report.lines()[-1]


def test_each_sample_is_kept_beside_the_map(
    runs: dict[str, Path], inputs: Path, tmp_path: Path, sampled: list[int]
) -> None:
    out = tmp_path / "out"
    (inputs / "scene-00001.png").rename(inputs / "scene-00000.1.png")
    settings: dict[str, Any] = {"overrides": K3, "each": True}
    sound(pictures.predict(runs["palette"], [inputs], out, **settings))
    assert len(outputs(out)) == 40 and len(list((out / "samples").iterdir())) == 30
    for stem in ("scene-00000", "scene-00000.1", "scene-00009"):
        parts = [pixels(out / "samples" / f"{stem}.{r}.png") for r in (1, 2, 3)]
        assert not np.array_equal(parts[0], parts[1])
        whole = pixels(out / f"{stem}.png")
        assert np.abs(np.mean(parts, axis=0) - whole).max() <= 1
    lines = [json.loads(line) for path in (out / "manifest").iterdir() for line in path.read_text().splitlines()]
    assert sorted(str(line.get("replicate")) for line in lines) == ["1"] * 10 + ["2"] * 10 + ["3"] * 10 + ["None"] * 10
    sound(verified(runs["palette"], inputs, out, **settings))
    (out / "samples" / "scene-00009.2.png").unlink()
    assert "1 missing" in "\n".join(verified(runs["palette"], inputs, out, **settings).lines())
    sampled.clear()
    assert sound(pictures.predict(runs["palette"], [inputs], out, **settings)) == f"10 maps in {out} (9 were there)"
    assert sampled == [1]
    sound(verified(runs["palette"], inputs, out, **settings))


def test_many_outputs_lie_in_numbered_folders(
    runs: dict[str, Path], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    sound(pictures.predict(runs["palette"], [inputs], plain, overrides=K3, each=True))
    monkeypatch.setattr(folder_, "FLAT", 30)
    monkeypatch.setattr(folder_, "FILLED", 10)
    sound(pictures.predict(runs["palette"], [inputs], out, overrides=K3, each=True))
    assert rundir.read_json(out / record.FILE)["folders"] == 4
    found = {name: data for name, data in outputs(out).items()}
    assert all(len(Path(name).parts) == 2 + name.startswith("samples/") for name in found)
    assert {Path(name).name: data for name, data in found.items()} == {
        Path(name).name: data for name, data in outputs(plain).items()
    }
    # More pictures come, and a limit that is not reached any more: what is there stays where it is.
    monkeypatch.setattr(folder_, "FLAT", 10_000)
    shutil.copy(inputs / "scene-00000.png", inputs / "later.png")
    settings: dict[str, Any] = {"overrides": K3, "each": True}
    assert sound(pictures.predict(runs["palette"], [inputs], out, **settings)) == f"11 maps in {out} (10 were there)"
    assert found.items() <= outputs(out).items()
    sound(verified(runs["palette"], inputs, out, **settings))


def _bits(run: Path, inputs: Path, tmp_path: Path, overrides: list[str]) -> None:
    """Shuffled by other names, in other shares, killed in between: the same bytes."""
    settings: dict[str, Any] = {"overrides": overrides, "each": "palette" in run.name}
    sound(pictures.predict(run, [inputs], tmp_path / "whole", **settings))
    whole = outputs(tmp_path / "whole")
    for shard in ("2/3", "3/3", "1/3"):
        sound(pictures.predict(run, [inputs], tmp_path / "shares", shard=shard, **settings))
    assert outputs(tmp_path / "shares") == whole
    sound(verified(run, inputs, tmp_path / "shares", **settings))
    for number in (1, 4, 6):
        for path in (tmp_path / "shares").rglob(f"scene-0000{number}*.png"):
            path.unlink()
    sound(pictures.predict(run, [inputs], tmp_path / "shares", **settings))
    assert outputs(tmp_path / "shares") == whole
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    names = {f"scene-{number:05}": f"other-{(7 * number + 3) % 10}" for number in range(10)}
    for old, new in names.items():
        shutil.copy(inputs / f"{old}.png", shuffled / f"{new}.png")
    sound(pictures.predict(run, [shuffled], tmp_path / "other", **settings))
    renamed = {name.replace(stem := Path(name).name[:11], names[stem]): data for name, data in whole.items()}
    assert outputs(tmp_path / "other") == renamed


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("unet", ["eval.batch=4"]), ("palette", K3), ("palette", ["eval.samples=5", "eval.batch=4"])],
)
def test_bits_depend_on_content_alone(
    name: str, overrides: list[str], runs: dict[str, Path], inputs: Path, tmp_path: Path
) -> None:
    _bits(runs[name], inputs, tmp_path, [*overrides, "eval.compile=never"])


@pytest.mark.slow
def test_bits_of_compiled_networks_depend_on_content_alone(runs: dict[str, Path], inputs: Path, tmp_path: Path) -> None:
    _bits(runs["palette"], inputs, tmp_path, [*K3, "eval.compile=always"])


def test_another_batch_is_within_one_grey_level(runs: dict[str, Path], inputs: Path, tmp_path: Path) -> None:
    for batch in (1, 7):
        sound(pictures.predict(runs["palette"], [inputs], tmp_path / str(batch), overrides=[f"eval.batch={batch}"]))
    for path in (tmp_path / "1").glob("*.png"):
        one, other = (pixels(tmp_path / place / path.name) for place in ("1", "7"))
        assert np.abs(one - other).max() <= 1


def test_ranks_share_a_share_without_a_process_group(
    runs: dict[str, Path],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (inputs / "scene-00001.png").write_text("words")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, share in ((1, "2/2"), (0, "1/2")):
        monkeypatch.setenv("RANK", str(rank))
        report = pictures.predict(runs["unet"], [inputs], tmp_path / "out")
        assert f"of shard {share} in" in report.sentence and report.clean == (rank == 0)
        said = capfd.readouterr().err.splitlines()
        # The first rank tells how far all are; the others what nobody would say for them.
        assert all(line.startswith("memdist (rank 1): " if rank else "predicting: 9 of 10 maps") for line in said)
        assert any("scene-00001.png cannot be read" in line for line in said) == (rank == 1)
    assert len(outputs(tmp_path / "out")) == 9


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("palette", ["--sampler", "dpmpp_2m"], "maps with eval.sampler = 'ddim', not 'dpmpp_2m'"),
        ("palette", ["--steps", "4"], "maps with eval.steps = 3, not 4"),
        ("palette", ["--samples", "2"], "maps with eval.samples = 1, not 2"),
        ("palette", ["--each"], "maps with --each = False, not True"),
        ("palette", ["eval.eta=0.5"], "maps with eval.eta = None, not 0.5"),
        ("palette", ["eval.spacing=snr"], "maps with eval.spacing = 'time', not 'snr'"),
        ("palette", ["eval.bound=none"], "maps with eval.bound = 'clamp', not 'none'"),
        ("palette", ["eval.combine=median"], "maps with eval.combine = 'mean', not 'median'"),
        ("palette", ["eval.precision=bf16"], "maps with precision = 'fp32', not 'bf16'"),
        ("palette", ["--no-ema"], "other weights (step 5, averaged) than those of {run} (step 5, not averaged)"),
        ("unet", [], "maps by other weights"),
    ],
)
def test_other_settings_in_one_folder_are_refused(
    name: str,
    given: list[str],
    says: str,
    runs: dict[str, Path],
    made: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = times(made)
    capfd.readouterr()
    for more in ([], ["--verify"]):
        assert command("predict", runs[name], runs["data"], "--out", made, *given, *more) == 2
        (sentence,) = capfd.readouterr().err.splitlines()
        assert says.format(run=runs[name]) in sentence and sentence.endswith("another folder with --out"), sentence
    assert times(made) == before


def test_what_makes_no_other_maps_is_no_other_setting(runs: dict[str, Path], inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sound(pictures.predict(runs["palette"], [inputs], out))
    shutil.copytree(runs["palette"], tmp_path / "moved")
    for overrides in (["eval.batch=3"], ["eval.compile=never"], ["device=cpu"], ["study.samples=[1]"]):
        assert "(10 were there)" in sound(pictures.predict(tmp_path / "moved", [inputs], out, overrides=overrides))


def test_settings_of_sampling_that_cannot_be(
    runs: dict[str, Path], inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cases = {
        ("unet", "--steps", "9"): "eval.steps and its flag do not apply to unet",
        ("unet", "--sampler", "ddim"): "eval.sampler and its flag do not apply to unet",
        ("unet", "--samples", "2"): "eval.samples and its flag do not apply to unet",
        ("unet", "--each"): "--each does not apply to unet, which does not sample",
        ("palette", "--steps", "0"): "eval.steps = 0 cannot be",
        ("palette", "--steps", "51"): "choose from 1 to 50 steps",
        ("palette", "--sampler", "euler"): "there is no sampler 'euler'",
        ("palette", "--samples", "0"): "eval.samples = 0 cannot be",
        ("palette", "--shard", "0/8"): "--shard '0/8' cannot be: it is I/N",
        ("palette", "--shard", "1/8", "--verify"): "--verify looks at all pictures and writes nothing",
        ("palette", "--grid", "--verify"): "--verify looks at all pictures and writes nothing",
    }
    for (name, *given), says in cases.items():
        assert command("predict", runs[name], inputs, "--out", tmp_path / "out", *given) == 2
        (sentence,) = capfd.readouterr().err.splitlines()
        assert says in sentence
    assert not (tmp_path / "out").exists()


def test_the_first_process_says_how_many_at_once(
    runs: dict[str, Path], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: list[int]
) -> None:
    out = tmp_path / "out"
    sound(pictures.predict(runs["palette"], [inputs], tmp_path / "whole", overrides=["eval.batch=2"]))
    begin = record.begin

    def late(place: Path, own: record.Record) -> record.Record:
        begin(place, record.Record(**{**vars(own), "batch": 2}))  # another process was quicker
        return begin(place, own)

    sampled.clear()
    monkeypatch.setattr(record, "begin", late)
    sound(pictures.predict(runs["palette"], [inputs], out))
    assert [n for n in sampled if n > 1][-5:] == [2] * 5 and outputs(out) == outputs(tmp_path / "whole")
    # And who comes later takes it from there, unless told otherwise.
    for overrides, expected in (([], [2, 2, 1]), (["eval.batch=5"], [5])):
        for path in sorted(out.glob("*.png"))[:5]:
            path.unlink()
        sampled.clear()
        sound(pictures.predict(runs["palette"], [inputs], out, overrides=overrides))
        assert sampled == expected


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("memdist")]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Let the disk be full after so many outputs."""
    write = rundir.write_bytes

    def after(count: int) -> None:
        left = [count]

        def refuse(path: Path, data: bytes) -> None:
            left[0] -= 1
            if left[0] < 0:
                with rundir.naming(path):
                    raise OSError(errno.ENOSPC, "No space left on device")
            write(path, data)

        monkeypatch.setattr(rundir, "write_bytes", refuse)

    yield after


def test_a_full_disk_in_between(
    runs: dict[str, Path],
    inputs: Path,
    tmp_path: Path,
    full: Callable[[int], None],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    full(5)
    line = ("predict", runs["unet"], inputs, "--out", out, "eval.batch=2")
    assert command(*line) == 2
    (sentence,) = capfd.readouterr().err.splitlines()
    assert "no space left on device" in sentence and "make room" in sentence
    assert threads() == [] and len(outputs(out)) == 5 and not list(out.rglob("*.tmp"))
    monkeypatch.undo()
    assert command(*line) == 0
    assert capfd.readouterr().out == f"10 maps in {out} (5 were there)\n"
    assert command(*line, "--verify") == 0


def test_an_interrupt_leaves_whole_outputs(
    runs: dict[str, Path], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    sample = mapper.Mapper.sample
    turns = iter(range(3))

    def interrupted(self: mapper.Mapper, *rest: Any) -> torch.Tensor:
        if next(turns, None) is None:
            raise KeyboardInterrupt
        return sample(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(mapper.Mapper, "sample", interrupted)
        line = ("predict", runs["unet"], inputs, "--out", out, "eval.batch=2")
        assert command(*line) == 130
    assert threads() == []
    assert sound(pictures.predict(runs["unet"], [inputs], out)) == f"10 maps in {out} (6 were there)"
    sound(verified(runs["unet"], inputs, out))


def test_weights_and_memory_that_do_not_do(
    runs: dict[str, Path], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: mapper.Mapper, image: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        maps = torch.zeros(*seeds.shape, 3, 16, 16)
        maps[1, 0, 0, 3, 3] = torch.nan
        return maps

    def short(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(mapper.Mapper, "sample", lost)
    with pytest.raises(
        CheckpointError, match=r"scene-00001\.png has values that are no finite numbers: .* of step 5 are"
    ):
        pictures.predict(runs["unet"], [inputs], tmp_path / "out")
    monkeypatch.setattr(mapper.Mapper, "sample", short)
    with pytest.raises(ConfigError, match=r"has too little memory now for the maps that .* eval\.batch=N"):
        pictures.predict(runs["unet"], [inputs], tmp_path / "out")
    assert outputs(tmp_path / "out") == {} and threads() == []


def test_what_a_killed_process_left_is_swept(runs: dict[str, Path], inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sound(pictures.predict(runs["palette"], [inputs], out, overrides=K3, each=True))
    child = os.fork()
    if not child:
        for place in (out, out / "samples", out / "manifest"):
            rundir.temporary(place / "a.png").write_text("half")
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(out.rglob("*.tmp"))) == 3
    sound(pictures.predict(runs["palette"], [inputs], out, overrides=K3, each=True))
    assert list(out.rglob("*.tmp")) == []


def test_sheets_of_what_is_predicted(runs: dict[str, Path], inputs: Path, tmp_path: Path, sampled: list[int]) -> None:
    out = tmp_path / "out"
    sound(pictures.predict(runs["palette"], [inputs], out, overrides=[*K3, "eval.grid=4"], grid=True))
    (sheet,) = (out / "sheets").iterdir()
    first = sheet.read_bytes()
    with Image.open(sheet) as picture:
        assert picture.size == (84 + 5 * 98, 16 + 4 * 98)
    before = times(out)
    sampled.clear()
    sound(pictures.predict(runs["palette"], [inputs], out, overrides=[*K3, "eval.grid=4"], grid=True))
    assert sum(sampled) == 4 and sheet.read_bytes() == first
    after = times(out)
    assert {name for name in before if before[name] != after[name]} == {str(sheet)} and before.keys() == after.keys()
    sound(pictures.predict(runs["palette"], [inputs], out, overrides=K3, shard="1/2", grid=True))
    assert {path.name for path in (out / "sheets").iterdir()} == {"sheet-01.png", "1-of-2-sheet-01.png"}
    sound(verified(runs["palette"], inputs, out, overrides=K3))
