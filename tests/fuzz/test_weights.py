"""Whatever a file of weights holds: it is imported, or a MemdistError says why not, and nothing of it ever runs."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from memdist import rundir
from memdist.errors import MemdistError
from memdist.exchange import bundle, exporting, importing
from memdist.train import loop
from tests import foreign, tiny
from tests.fuzz.damage import Change, changes, damaged

GIVEN = {"palette": ["data.size=16", "model.heads=1"], "pix2pix": ["data.size=16"], "memdist": []}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind, in both forms, and an exported run."""
    here = tmp_path_factory.mktemp("weights")
    state = foreign.denoiser() | foreign.tables()
    torch.save(state, here / "palette.pth")
    save_file({key: value.contiguous() for key, value in state.items()}, here / "palette.safetensors")
    torch.save(foreign.generator(), here / "pix2pix.pth")
    data = tiny.data(here / "data")
    assert loop.train(tiny.run("palette", data, epochs=1), here / "run") == 0
    exporting.export(here / "run", here / "memdist")
    return {path.name: path for path in (*here.glob("*.pth"), *here.glob("*.safetensors"), here / "memdist")}


few = settings(max_examples=max(12, (settings.default.max_examples if settings.default else 0) // 10))


def _import(kind: str, source: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    try:
        importing.import_(kind, source, out, GIVEN[kind])
    except MemdistError as error:
        assert len(str(error).splitlines()) == 1
        assert not out.exists()
    assert not list(out.parent.glob("*.tmp"))


@pytest.mark.parametrize("name", ["palette.pth", "palette.safetensors", "pix2pix.pth"])
@few
@given(how=changes)
def test_a_damaged_file_is_imported_or_refused(
    sources: dict[str, Path], tmp_path: Path, name: str, how: list[Change]
) -> None:
    path = tmp_path / name
    path.write_bytes(damaged(sources[name].read_bytes(), how))
    _import(path.stem, path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["palette", "pix2pix"])
@few
@given(
    tensors=st.dictionaries(
        st.sampled_from([*foreign.denoiser(), *foreign.generator(), "gammas"]) | st.text(max_size=8),
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
        max_size=4,
    ),
    drop=st.integers(0, 3),
    whole=st.booleans(),
)
def test_any_tensors_are_imported_or_refused(
    tmp_path: Path, kind: str, tensors: dict[str, tuple[int, ...]], drop: int, whole: bool
) -> None:
    state = (foreign.denoiser() if kind == "palette" else foreign.generator()) if whole else {}
    for key in list(state)[: drop * 3 : 3]:
        del state[key]
    state |= {key: torch.zeros(shape) for key, shape in tensors.items()}
    torch.save(state, tmp_path / "any.pth")
    _import(kind, tmp_path / "any.pth", tmp_path / "out")


@few
@given(data=st.data(), how=changes, sealed=st.booleans())
def test_a_damaged_export_is_imported_or_refused(
    sources: dict[str, Path], tmp_path: Path, data: st.DataObject, how: list[Change], sealed: bool
) -> None:
    folder = tmp_path / "export"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sources["memdist"], folder)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    path.write_bytes(damaged(path.read_bytes(), how))
    if sealed and path.name != bundle.MANIFEST:
        rundir.write_json(folder / bundle.MANIFEST, bundle.seal(folder))
    _import("memdist", folder, tmp_path / "out")
