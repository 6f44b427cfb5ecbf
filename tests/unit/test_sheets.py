"""Sheets: every picture on one, tiles where they belong."""

import torch

from memdist.model import Sampling
from memdist.train import sheets
from memdist.train.recipe import Recipe


def _tile(value: int, channels: int = 1) -> torch.Tensor:
    return torch.full((channels, 32, 32), value, dtype=torch.uint8)


def test_tiles_stand_in_lines_and_columns() -> None:
    page = sheets.sheet(["image", "map"], [("a", [_tile(10, 3), _tile(20)]), ("b" * 50, [_tile(30, 3), _tile(40)])])
    assert page.dtype == torch.uint8 and page.shape[0] == 3
    high = 3 * 32 + 2
    for line in range(2):
        for column in range(2):
            y, x = sheets._TOP + line * high + 5, sheets._LEFT + column * high + 5
            assert page[:, y, x].tolist() == [10 + 20 * line + 10 * column] * 3
    assert (page[:, : sheets._TOP, sheets._LEFT :] < 128).any(), "no titles"
    assert (page[:, sheets._TOP :, : sheets._LEFT] < 128).any(), "no names"


def test_lines_are_dealt_to_sheets() -> None:
    lines = [(str(i), [_tile(i)]) for i in range(2 * sheets.LINES + 1)]
    made = sheets.pages(["image"], lines)
    assert list(made) == ["sheet-01.png", "sheet-02.png", "sheet-03.png"]
    assert made["sheet-03.png"].shape[1] < made["sheet-02.png"].shape[1]


def test_samples_have_columns_where_there_are_several() -> None:
    assert sheets.columns(Recipe(Sampling())) == ["predicted"]
    assert sheets.columns(Recipe(Sampling(), 2, "median")) == ["sample 1", "sample 2", "median of 2"]
    assert len(sheets.columns(Recipe(Sampling(), 100))) == sheets.SHOWN + 1
