"""Files of weights from outside: nothing in them runs, and what is torn or strange gets one sentence."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from memdist import foreign as foreign_
from memdist.errors import CheckpointError
from tests import foreign


class Evil:
    """Unpickled by an ordinary loader, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["plain pickle", "torch.save"])
def test_nothing_in_a_file_runs(kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    content = {"weight": torch.zeros(2), "extra": Evil(mark)}
    if kind == "torch.save":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match="would have to run code|is no checkpoint"):
        foreign_.tensors(path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if kind == "torch.save" else pickle.loads(path.read_bytes())
    assert mark.exists(), "the file is not as dangerous as it should be"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "holds no weights by name"),
        ([torch.zeros(1)], "holds no weights by name"),
        ({"a": torch.zeros(1), "epoch": 3}, "holds more than weights, such as 'epoch'"),
        ({3: torch.zeros(1)}, "holds more than weights"),
        ({"a": torch.tensor([1.0, float("nan")])}, "no finite numbers"),
        ({"a": torch.zeros(1).expand(10**9)}, "holds fewer numbers"),
        ({"a": torch.eye(3).to_sparse()}, "no plain tensor"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "no plain tensor"),
    ],
)
def test_only_plain_tensors_are_taken(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=says):
        foreign_.tensors(tmp_path / "x.pth")


def test_half_precision_and_a_state_dict_within(tmp_path: Path) -> None:
    state = {"a": torch.ones(2).half(), "n": torch.tensor(4, dtype=torch.int32)}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "x.pt")
    found = foreign_.tensors(tmp_path / "x.pt")
    assert found["a"].dtype == torch.float32 and found["n"].dtype == torch.int64


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 2000, -1, -30])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torn_files_are_named(cut: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    state = {k: v.contiguous() for k, v in foreign.denoiser().items()}
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=str(path)):
        foreign_.tensors(path)


def test_a_flipped_bit_of_an_archive_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"weight": torch.randn(500)}, path)
    whole = path.read_bytes()
    start = whole.index(torch.load(path, weights_only=True)["weight"].numpy().tobytes())
    for place in (start, start + 777, start + 1999):
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is not what was written \(checksum\)"):
            foreign_.tensors(path)


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(3)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert foreign_.tensors(tmp_path / "x.pth")["weight"].tolist() == [1, 1, 1]


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as stored,
        zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    assert torch.load(tmp_path / "y.pth", weights_only=True)["weight"].sum() == 0
    with pytest.raises(CheckpointError, match="is compressed, which torch.save never does"):
        foreign_.tensors(tmp_path / "y.pth")


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    torch.save({"x" * 10**6: 3}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as told:
        foreign_.tensors(tmp_path / "x.pth")
    assert len(str(told.value)) < 400


def test_an_ending_in_capitals_is_the_same(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "x.SAFETENSORS")
    assert foreign_.tensors(tmp_path / "x.SAFETENSORS")["weight"].tolist() == [1, 1]
