"""Whatever became of a run folder's files: they are read as before, or a MemdistError says what is wrong."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from memdist import output, rundir
from memdist.compare import page, table
from memdist.errors import MemdistError
from memdist.exchange import exporting
from memdist.predict import pictures
from memdist.train import checkpoint, evaluate, loop, restore
from tests import tiny
from tests.fuzz.damage import Change, changes, damaged

TEXTS = (
    rundir.CONFIG,
    rundir.SPLIT,
    rundir.SCORES,
    rundir.SCORES_CSV,
    rundir.STATE,
    rundir.PROVENANCE,
    rundir.METRICS,
    rundir.TIMING,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEEP = object()
# Numbers beyond what memdist writes, and text that UTF-8 has no place for.
ODD = JSON | st.sampled_from([10**400, -(10**400), 2**63, 1e308, -1e308, "\ud800", [1], {}])
POINT = {"step": 1, "epoch": 1.0, "val/l1": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored run with an average, two checkpoints and all else that a run folder may hold."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert loop.train(tiny.run("unet batch prior", data, epochs=2, **{"checkpoint.keep_every": 1}), out) == 0
    evaluate.evaluate(out, ["val", "test"])
    # What only some runs are scored by: the same shape as a run with fixations and the weights of Inception has.
    scores = rundir.read_json(out / rundir.SCORES)
    figure = {"mean": 0.1, "std": 0.01}
    scores["test"]["distribution"] = {
        "kind": "kid",
        "n": 6,
        "layer": "pool3 (2048)",
        "weights_sha256": "0" * 64,
        "subsets": 100,
        "subset": 3,
        "model": figure,
        "trivial": dict.fromkeys(scores["test"]["trivial"], figure),
    }
    scores["test"]["fixations"] = {"sha256": "0" * 64, "pictures": 6, "ignored": 0, "negatives": {}}
    rundir.write_json(out / rundir.SCORES, scores)
    for read in (*RECORDS, *WEIGHTS):
        read(out, out.parent)  # nothing is refused of a run that is whole
    return out


@contextlib.contextmanager
def with_bytes(path: Path, content: bytes) -> Iterator[None]:
    """A file with other content, for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def _compared(run: Path, scratch: Path) -> None:
    found = table.collect([run])
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
        output.console(needed=True).print(table.render(found))
    page.write(found, scratch / "page.html")


def _exported(run: Path, scratch: Path) -> None:
    shutil.rmtree(scratch / "export", ignore_errors=True)
    exporting.export(run, scratch / "export", choice="last")


def _best(run: Path, _: Path) -> None:
    restore.restore(run, "best", ema=True, device=torch.device("cpu"))


def _last(run: Path, _: Path) -> None:
    restore.restore(run, "last", ema=True, device=torch.device("cpu"))


RECORDS = (_compared, _exported)
"""What reads what a run folder says of itself."""
WEIGHTS = (_best, _last)
"""What reads its checkpoints."""


def _read_all(run: Path, scratch: Path, readers: Sequence[Callable[[Path, Path], None]]) -> None:
    """Read a run folder without changing it: as it was, or a MemdistError says what is wrong."""
    for read in readers:
        with contextlib.suppress(MemdistError):
            read(run, scratch)


def _reseal(run: Path, step: int) -> None:
    """Make the manifest say that what stands there is what was written."""
    folder = checkpoint.folder(run, step)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({name: checkpoint._seal(folder / name) for name in manifest}))


def _replaced(tree: Any, place: float, value: Any) -> Any:
    """The tree with one of its nodes, the one at a relative place in reading order, replaced."""
    nodes: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, inner in items:
            nodes.append((node, key))
            walk(inner)

    tree = json.loads(json.dumps(tree))
    walk(tree)
    if not nodes:
        return value
    parent, key = nodes[int(place * len(nodes))]
    if value is KEEP:
        del parent[key]
    else:
        parent[key] = value
    return tree


@given(st.sampled_from(TEXTS), changes)
def test_a_damaged_text_is_read_or_said(whole: Path, tmp_path: Path, name: str, how: list[Change]) -> None:
    with with_bytes(whole / name, damaged((whole / name).read_bytes(), how)):
        _read_all(whole, tmp_path, RECORDS if name != rundir.CONFIG else (*RECORDS, _last))


@given(
    st.sampled_from([rundir.SCORES, rundir.STATE, rundir.PROVENANCE]),
    st.floats(0, 1, exclude_max=True),
    ODD | st.just(KEEP),
)
def test_a_changed_value_is_read_or_said(whole: Path, tmp_path: Path, name: str, place: float, value: Any) -> None:
    changed = _replaced(json.loads((whole / name).read_text()), place, value)
    with with_bytes(whole / name, json.dumps(changed).encode()):
        _read_all(whole, tmp_path, RECORDS)


@given(
    st.sampled_from([rundir.SCORES, rundir.STATE, rundir.PROVENANCE]),
    st.dictionaries(st.text(max_size=5), ODD, max_size=3),
)
@example(rundir.SCORES, {"val": {}})
@example(rundir.SCORES, {"test": "x"})
@example(rundir.PROVENANCE, {"imported": 1})
@example(rundir.PROVENANCE, {"split_sha256": "x", "legs": [{"git": {}}]})
@example(rundir.STATE, {"state": "stopped", "steps": 9})
@example(rundir.STATE, {"state": {}, "parameters": {"net": 10**400}})
def test_another_object_is_read_or_said(whole: Path, tmp_path: Path, name: str, value: dict[str, Any]) -> None:
    with with_bytes(whole / name, json.dumps(value).encode()):
        _read_all(whole, tmp_path, RECORDS)


@given(st.lists(ODD | st.dictionaries(st.sampled_from(sorted(POINT)), ODD | st.floats(0, 9), max_size=3), max_size=4))
@example([[1]])
@example([POINT | {"val/l1": "x"}])
@example([POINT | {"epoch": float("inf")}])
@example([POINT | {"epoch": 1e308}])
@example([POINT | {"epoch": 5e-324, "val/l1": 5e-324}, POINT])
def test_any_lines_of_metrics_are_read_or_said(whole: Path, tmp_path: Path, lines: list[Any]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with with_bytes(whole / rundir.METRICS, text.encode()):
        _read_all(whole, tmp_path, [_compared])


@given(st.binary(min_size=1, max_size=12).filter(lambda b: b"/" not in b and b"\0" not in b))
@example(b"\xff")
def test_samples_of_any_name_are_shown_or_said(whole: Path, tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(whole / rundir.SAMPLES / "test") + b"/best-01-" + name + b".png"
    Path(os.fsdecode(path)).write_bytes(b"a picture")
    try:
        _compared(whole, tmp_path)
    finally:
        os.unlink(path)


@given(st.data(), changes, st.booleans())
def test_a_damaged_checkpoint_is_read_or_said(
    whole: Path, tmp_path: Path, data: st.DataObject, how: list[Change], sealed: bool
) -> None:
    step = checkpoint.steps(whole)[-1]
    folder = checkpoint.folder(whole, step)
    name = data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir())))
    manifest = (folder / "manifest.json").read_bytes()
    with (
        with_bytes(folder / "manifest.json", manifest),
        with_bytes(folder / name, damaged((folder / name).read_bytes(), how)),
    ):
        if sealed and name != "manifest.json":
            _reseal(whole, step)
        _read_all(whole, tmp_path, WEIGHTS)


@given(st.floats(0, 1, exclude_max=True), JSON | st.just(KEEP))
def test_a_checkpoint_with_another_state_is_read_or_said(whole: Path, tmp_path: Path, place: float, value: Any) -> None:
    step = checkpoint.steps(whole)[-1]
    path = checkpoint.folder(whole, step) / "state.json"
    changed = _replaced(json.loads(path.read_text()), place, value)
    with with_bytes(path.with_name("manifest.json"), path.with_name("manifest.json").read_bytes()):
        with with_bytes(path, json.dumps(changed).encode()):
            _reseal(whole, step)
            _read_all(whole, tmp_path, WEIGHTS)


@given(st.data(), st.sampled_from(["drop", "shape", "kind", "add", "nan", "empty"]))
def test_foreign_weights_are_read_or_said(whole: Path, tmp_path: Path, data: st.DataObject, how: str) -> None:
    step = checkpoint.steps(whole)[-1]
    folder = checkpoint.folder(whole, step)
    name = data.draw(st.sampled_from([checkpoint.NETS, checkpoint.AVERAGES]))
    tensors = load_file(folder / name)
    key = data.draw(st.sampled_from(sorted(tensors)))
    if how == "drop":
        del tensors[key]
    elif how == "shape":
        tensors[key] = torch.zeros(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    elif how == "kind":
        tensors[key] = tensors[key].to(data.draw(st.sampled_from([torch.int64, torch.bool, torch.float16])))
    elif how == "nan":
        tensors[key] = torch.full_like(tensors[key].float(), float("nan"))
    elif how == "add":
        tensors[data.draw(st.text(max_size=10))] = torch.ones(2)
    else:
        tensors = {}
    before = (folder / name).read_bytes()
    with (
        with_bytes(folder / "manifest.json", (folder / "manifest.json").read_bytes()),
        with_bytes(folder / name, before),
    ):
        save_file(tensors, folder / name)
        _reseal(whole, step)
        _read_all(whole, tmp_path, (*WEIGHTS, _exported))


def _resume(whole: Path, data: Path, out: Path, change: Any) -> None:
    """Copy a run, change it, train it on: it ends, or a MemdistError says why not, and its scores still stand."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(whole, out)
    change(out)
    with contextlib.suppress(MemdistError):
        assert loop.train(tiny.run("unet batch prior", data, epochs=3, **{"checkpoint.keep_every": 1}), out) == 0
        assert restore.restore(out, "last", ema=True, device=torch.device("cpu")).step == 14


few = settings(max_examples=max(12, settings.default.max_examples // 10) if settings.default else 12)


@few
@given(st.data(), changes, st.booleans())
def test_a_damaged_run_goes_on_or_says_why_not(
    whole: Path, data: Path, tmp_path: Path, draw: st.DataObject, how: list[Change], sealed: bool
) -> None:
    step = checkpoint.steps(whole)[-1]
    names = [p.relative_to(whole) for p in (*checkpoint.folder(whole, step).iterdir(), *(whole / n for n in TEXTS))]
    name = draw.draw(st.sampled_from(sorted(names)))

    def change(out: Path) -> None:
        (out / name).write_bytes(damaged((out / name).read_bytes(), how))
        if sealed and len(name.parts) > 1 and name.name != "manifest.json":
            _reseal(out, step)

    _resume(whole, data, tmp_path / "resumed", change)


@few
@given(st.floats(0, 1, exclude_max=True), JSON | st.just(KEEP))
def test_a_run_with_another_state_goes_on_or_says_why_not(
    whole: Path, data: Path, tmp_path: Path, place: float, value: Any
) -> None:
    step = checkpoint.steps(whole)[-1]

    def change(out: Path) -> None:
        path = checkpoint.folder(out, step) / "state.json"
        path.write_text(json.dumps(_replaced(json.loads(path.read_text()), place, value)))
        _reseal(out, step)

    _resume(whole, data, tmp_path / "resumed", change)


@few
@given(st.text(min_size=1, max_size=12).filter(lambda t: "/" not in t and "\0" not in t), st.booleans())
def test_a_picture_of_any_name_gets_its_map_in_the_output_folder(
    whole: Path, data: Path, tmp_path: Path, name: str, folder: bool
) -> None:
    inputs, out = tmp_path / "in", tmp_path / "out"
    shutil.rmtree(inputs, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    inputs.mkdir()
    try:
        shutil.copy(next((data / "images").iterdir()), inputs / f"{name}.png")
    except (OSError, UnicodeEncodeError):  # no name for a file here
        return
    before = {p for p in tmp_path.rglob("*") if p != out}
    with contextlib.suppress(MemdistError):
        pictures.predict(whole, [inputs if folder else inputs / f"{name}.png"], out)
        assert {p.name for p in out.iterdir()} >= {"manifest", "predict.json"} and len(list(out.glob("*.png"))) == 1
    strange = {p for p in tmp_path.rglob("*") if out not in p.parents and p != out} - before
    assert not strange, strange
