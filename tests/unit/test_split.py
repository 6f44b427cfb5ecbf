"""Splits: exact counts, stable ranks, lists, and the file that records them."""

import os
import random
from pathlib import Path

import pytest

from memdist.config import Data
from memdist.data import sheet, split
from memdist.data.pairs import PairFile
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
        ({"val": ["s0001", "t"]}, {}, r"data\.val = .*val names 1 pair that is not there, such as 't'"),
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


def test_lists_that_cannot_be_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "gone.txt", "does not exist"),
        *((p, "is not a file") for p in (tmp_path / "pipe", tmp_path)),
    ):
        with pytest.raises(DataError, match=rf"data\.test = {path} {why}: give a text file with a stem on each line"):
            split.make(STEMS, Data(test=path))
    for name in split.NAMES:
        with pytest.raises(DataError, match=rf"data\.{name} = /dev/zero is not a file"):
            split.make(STEMS, Data(**{name: "/dev/zero"}))
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="line 1 of .* holds a NUL character"):
        split.make(STEMS, Data(val=tmp_path / "binary"))
    (tmp_path / "latin").write_bytes(b"s0001\n\xe9\n")
    with pytest.raises(DataError, match="line 2 of .* is not UTF-8 text"):
        split.make(STEMS, Data(val=tmp_path / "latin"))
    monkeypatch.setattr(sheet, "LARGEST", 5)
    with pytest.raises(DataError, match="is larger than"):
        split.make(STEMS, Data(val=tmp_path / "latin"))


# What the data say themselves


def test_the_splits_of_the_data_are_kept_and_the_rest_is_cut_from_their_train():
    splits = {s: "test" if i < 300 else "train" for i, s in enumerate(STEMS)}
    got = split.make(STEMS, Data(val=0.1, test=0.5), splits)
    assert got["test"] == STEMS[:300] and len(got["val"]) == 160 and len(got["train"]) == 1140
    assert got["val"] == sorted(split.ranked(STEMS[300:], 0)[:160])


def test_a_list_may_take_from_the_train_of_the_data(tmp_path):
    splits = {s: "test" if i < 3 else "train" for i, s in enumerate(STEMS[:10])}
    got = split.make(STEMS[:10], Data(val=listed(tmp_path / "val", STEMS[5:7])), splits)
    assert got == {"train": STEMS[3:5] + STEMS[7:10], "val": STEMS[5:7], "test": STEMS[:3]}
    with pytest.raises(DataError, match="'s0001' stands both in data.val and in the data's test"):
        split.make(STEMS[:10], Data(val=listed(tmp_path / "val", STEMS[1:2])), splits)
    with pytest.raises(DataError, match=r"data\.test = .* lists a split that the data name themselves"):
        split.make(STEMS[:10], Data(test=listed(tmp_path / "test", STEMS[:3])), splits)
    with pytest.raises(DataError, match=r"data\.train = .* lists a split that the data name themselves"):
        split.make(STEMS[:10], Data(train=listed(tmp_path / "train", STEMS[3:])), splits)


def test_a_split_that_is_cut_from_the_train_of_the_data_is_told():
    pairs = [PairFile(s, Path("x"), Path("y"), "test" if i < 3 else "train") for i, s in enumerate(STEMS[:10])]
    (note,) = split.deal(pairs, Data(val=0.2)).notes
    assert note == "the data name no val split: 2 pairs are cut from their train (data.val=0.2)"
    assert split.deal([p._replace(split=None) for p in pairs], Data()).notes == []
    (note,) = split.deal(pairs, Data(val=0.1)).notes
    assert note == "the data name no val split: 1 pair is cut from their train (data.val=0.1)"


def test_a_test_split_that_comes_out_empty_is_told():
    pairs = [PairFile(s, Path("x"), Path("y"), None, f"g{i // 5}") for i, s in enumerate(STEMS[:20])]
    dealt = split.deal(pairs, Data(val=0.25, test=0.1))
    assert dealt.stems["test"] == [] and len(dealt.stems["val"]) == 5
    assert dealt.notes[1:] == [
        "data.test=0.1 takes none of 20 pairs, as groups are kept whole: scores are marked as selected on"
    ]
    assert not any(
        "none of" in note for test in (0, 0.25) for note in split.deal(pairs, Data(val=0.25, test=test)).notes
    )


# Groups


def test_groups_do_not_move_the_ranks_of_other_pairs():
    groups = {"s0003": "x", "s0005": "x"}
    order = [stem for unit in split.units(STEMS, 0, groups) for stem in unit if stem not in groups]
    assert order == [stem for stem in split.ranked(STEMS, 0) if stem not in groups]
    assert split.make(STEMS, Data(), {}, {}) == split.make(STEMS, Data())


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_parted_and_counts_are_near(seed):
    rng = random.Random(seed)
    groups = {stem: f"g{rng.randrange(300)}" for stem in STEMS if rng.random() < 0.7}
    got = split.make(STEMS, Data(val=0.1, test=0.2, split_seed=seed), None, groups)
    assert sorted(got["train"] + got["val"] + got["test"]) == STEMS
    home = {stem: name for name, part in got.items() for stem in part}
    assert all(len({home[s] for s in groups if groups[s] == g}) == 1 for g in set(groups.values()))
    # There are single pairs enough to fill up what groups leave; a small one may reach a little over.
    assert abs(len(got["val"]) - 160) <= 2 and abs(len(got["test"]) - 320) <= 2


def test_a_group_larger_than_a_split_is_passed_over():
    stems = STEMS[:20]
    groups = dict.fromkeys(stems[:15], "most")
    got = split.make(stems, Data(val=0.1, test=0.1), None, groups)
    assert set(stems[:15]) <= set(got["train"]) and (len(got["val"]), len(got["test"])) == (2, 2)
    with pytest.raises(DataError, match="the val split would be empty .* with groups kept whole"):
        split.make(stems, Data(val=0.1, test=0.1), None, dict.fromkeys(stems, "all"))


def test_a_group_goes_where_it_comes_nearest():
    # Groups of three and a count of 4: one group gives 3, a second 6, which is further away.
    stems = STEMS[:30]
    groups = {stem: str(i // 3) for i, stem in enumerate(stems)}
    got = split.make(stems, Data(val=0.1, test=4 / 30), None, groups)
    assert (len(got["test"]), len(got["val"])) == (3, 3)


def test_test_groups_do_not_move_with_val():
    groups = {stem: stem[:-1] for stem in STEMS}
    assert (
        split.make(STEMS, Data(val=0.1), None, groups)["test"] == split.make(STEMS, Data(val=0.3), None, groups)["test"]
    )


def test_groups_that_are_parted_by_others(tmp_path):
    stems = STEMS[:10]
    splits = {s: "test" if i < 3 else "train" for i, s in enumerate(stems)}
    message = r"the group 'burst' stands in (test|train) \('s000[24]'\) and in (test|train)"
    with pytest.raises(DataError, match=message):
        split.make(stems, Data(), splits, {"s0002": "burst", "s0004": "burst"})
    lists = Data(val=listed(tmp_path / "val", ["s0002"]), test=0)
    for other in stems[3:]:  # wherever it ranks
        with pytest.raises(DataError, match="the group 'burst' stands in val"):
            split.make(stems, lists, None, {"s0002": "burst", other: "burst"})
    # What is in no split at all parts nobody.
    alone = Data(
        train=listed(tmp_path / "train", stems[:2]),
        val=listed(tmp_path / "val", ["s0002"]),
        test=listed(tmp_path / "t", []),
    )
    assert split.make(stems, alone, None, {"s0002": "burst", "s0004": "burst"})["val"] == ["s0002"]


# The file


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
