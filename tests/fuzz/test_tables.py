"""Whatever stands in the tables and lists that people write: it is read, or a DataError of one sentence says why not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from memdist import config
from memdist.data import check, fixations, sources, split
from memdist.errors import DataError
from tests.fuzz.damage import Change, changes, damaged

PAIRS = "image,map,split,group\n" + "".join(
    f"a/{n}.png,b/{n}.png,{'train' if n > 3 else 'val' if n > 1 else 'test'},{'g' if n in (4, 5) else ''}\n"
    for n in range(9)
)
GROUPS = "stem,group\n0,x\n1,x\n5,y\n6,y\n"
STEMS = "0\n1\n5\n"
PLACES = "stem,x,y\n0,1,2\n0,3.5,7\n1,0,0\n"
SPLIT = "stem,split,image_hash,map_hash\n" + "".join(f"{n},train,{'a' * 64},{'b' * 64}\n" for n in range(4))

cells = st.text(max_size=12) | st.sampled_from(
    ["a/1.png", "../1.png", "/etc/passwd", "train", "nan", "1e999", '"', "\0", "x" * 5000]
)
tables = st.lists(st.lists(cells, max_size=5).map(",".join), max_size=6).map("\n".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for part in ("a", "b"):
        (here / part).mkdir()
        for number in range(9):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(here / part / f"{number}.png")
    return here


def _read(work: Callable[[], object]) -> None:
    try:
        work()
    except DataError as error:
        assert len(str(error).splitlines()) == 1 and str(error).strip()


def _pairs(folder: Path, content: bytes) -> None:
    path = folder / "pairs.csv"
    path.write_bytes(content)
    data = config.Data(csv=path)
    _read(lambda: sources.survey(data))
    _read(lambda: split.deal(sources.find(data).pairs, data))
    _read(lambda: check.listing(data))


def _groups(folder: Path, content: bytes) -> None:
    (folder / "groups.csv").write_bytes(content)
    data = config.Data(images=folder / "a", maps=folder / "b", groups=folder / "groups.csv", val=0.3, test=0.3)
    _read(lambda: split.deal(sources.find(data).pairs, data))


def _stems(folder: Path, content: bytes) -> None:
    (folder / "val.txt").write_bytes(content)
    data = config.Data(images=folder / "a", maps=folder / "b", val=folder / "val.txt")
    _read(lambda: split.deal(sources.find(data).pairs, data))


def _places(folder: Path, content: bytes) -> None:
    (folder / "places.csv").write_bytes(content)
    pairs = {pair.stem: pair for pair in sources.find(config.Data(images=folder / "a", maps=folder / "b")).pairs}
    _read(lambda: fixations.read(folder / "places.csv", pairs))


def _split(folder: Path, content: bytes) -> None:
    (folder / "split.csv").write_bytes(content)
    _read(lambda: split.read(folder / "split.csv"))


KINDS = {"pairs": (_pairs, PAIRS), "groups": (_groups, GROUPS), "stems": (_stems, STEMS)}
KINDS |= {"places": (_places, PLACES), "split": (_split, SPLIT)}


@pytest.mark.parametrize("kind", KINDS)
@given(how=changes)
def test_a_damaged_table_is_read_or_said(folder: Path, kind: str, how: list[Change]) -> None:
    read, whole = KINDS[kind]
    read(folder, damaged(whole.encode(), how))


@pytest.mark.parametrize("kind", KINDS)
@given(head=st.booleans(), body=tables)
@example(head=True, body="\udcff")
@example(head=True, body='"' * 9)
@example(head=True, body="," * 200_000)
def test_any_table_is_read_or_said(folder: Path, kind: str, head: bool, body: str) -> None:
    read, whole = KINDS[kind]
    text = (whole.split("\n")[0] + "\n" if head else "") + body
    read(folder, text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("kind", KINDS)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_table_or_said(folder: Path, kind: str, content: bytes) -> None:
    KINDS[kind][0](folder, content)
