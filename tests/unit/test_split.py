"""Splits: exact counts, stable ranks, lists, and the file that records them."""

import pytest

from memdist.config import Data
from memdist.data import split
from memdist.errors import DataError

STEMS = [f"s{i:04}" for i in range(1600)]


def listed(path, stems):
    path.write_text("\n".join(stems) + "\n\n")
    return path


@pytest.mark.parametrize("n", [10, 97, 1600])
def test_counts_are_exact_and_splits_disjoint(n):
    got = split.make(STEMS[:n], Data(val=0.1, test=0.2))
    assert (len(got["val"]), len(got["test"])) == (round(0.1 * n), round(0.2 * n))
    assert sorted(got["train"] + got["val"] + got["test"]) == STEMS[:n]
    assert all(got[name] == sorted(got[name]) for name in split.NAMES)


def test_the_split_depends_on_its_seed_and_not_on_the_order_given():
    first = split.make(STEMS, Data())
    assert split.make(STEMS[::-1], Data()) == first
    assert split.make(STEMS, Data(split_seed=1)) != first


def test_test_does_not_move_with_val_and_hardly_with_new_pairs():
    first = split.make(STEMS, Data(val=0.1))
    assert split.make(STEMS, Data(val=0.3))["test"] == first["test"]
    more = split.make([*STEMS, "new"], Data(val=0.1))
    assert len(set(first["test"]) ^ set(more["test"])) <= 2


def test_ranks_are_those_of_other_machines_and_versions():
    assert split.ranked(STEMS[:6], 0) == ["s0002", "s0001", "s0000", "s0003", "s0005", "s0004"]


def test_a_list_of_test_pairs_leaves_val_to_be_carved_out_of_train(tmp_path):
    mine = STEMS[:320]
    got = split.make(STEMS, Data(test=listed(tmp_path / "test.txt", mine), val=0.1))
    assert got["test"] == mine and len(got["val"]) == 160 and len(got["train"]) == 1120


def test_lists_alone_need_not_name_every_pair(tmp_path):
    given = {"train": STEMS[:5], "val": STEMS[5:7], "test": STEMS[7:9]}
    got = split.make(STEMS[:20], Data(**{n: listed(tmp_path / n, s) for n, s in given.items()}))
    assert got == given


def test_no_test_split():
    got = split.make(STEMS[:10], Data(val=0.2, test=0))
    assert got["test"] == [] and len(got["val"]) == 2 and len(got["train"]) == 8


@pytest.mark.parametrize(
    "lists, fractions, message",
    [
        ({"val": ["s0001", "t"]}, {}, r"data\.val = .*val names 1 pairs that are not there, such as 't'"),
        ({"val": ["s0001.png"]}, {}, r"without their ending"),
        ({"val": ["s0001", "s0001"]}, {}, r"names 's0001' 2 times"),
        ({"val": ["s0001"], "train": ["s0001"]}, {}, r"'s0001' stands both in data\.train and in data\.val"),
        ({"val": []}, {}, "the val split would be empty"),
        ({}, {"val": 0}, "the val split would be empty"),
        ({}, {"val": 0.04}, "the val split would be empty"),
        ({}, {"val": 0.8, "test": 0.2}, "the train split would be empty"),
        ({}, {"val": 0.9, "test": 0.2}, r"data\.val=0\.9 asks for 9 of 10 pairs, but only 8"),
        (
            {"train": STEMS[:8]},
            {"val": 0.2, "test": 0.2},
            r"data\.val=0\.2 asks for 2 .* only 0 .*leave data\.train out",
        ),
    ],
)
def test_splits_that_cannot_be(tmp_path, lists, fractions, message):
    given = {n: listed(tmp_path / n, s) for n, s in lists.items()}
    with pytest.raises(DataError, match=message):
        split.make(STEMS[:10], Data(**given, **fractions))


def test_lists_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"data\.test = .*gone\.txt cannot be read: no such file"):
        split.make(STEMS, Data(test=tmp_path / "gone.txt"))
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="not UTF-8 text"):
        split.make(STEMS, Data(val=tmp_path / "binary"))


def test_the_file_keeps_everything(tmp_path):
    stems = ["plain", "with, comma", 'with "quotes"', "Ünïcode", "5"]
    lists = split.make(stems, Data(val=0.2, test=0.2))
    hashes = {s: f"{i:064x}" for i, s in enumerate(stems)}
    table = split.rows(lists, hashes, {s: h[::-1] for s, h in hashes.items()})
    split.write(tmp_path / "split.csv", table)
    assert (tmp_path / "split.csv").read_text().startswith("stem,split,image_hash,map_hash\n")
    again = split.read(tmp_path / "split.csv")
    assert again == table and split.stems_of(again) == lists
    assert split.fingerprint(again) == split.fingerprint(table)
    changed = [table[0]._replace(map_hash="0" * 64), *table[1:]]
    assert split.fingerprint(changed) != split.fingerprint(table)


@pytest.mark.parametrize("text", ["", "a,b\n", "stem,split,image_hash,map_hash\na,train,1\n", "\0"])
def test_a_file_that_is_no_split(tmp_path, text):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(DataError, match=r"split\.csv"):
        split.read(tmp_path / "split.csv")
