"""Sweeps: settings that stand for many runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from memdist.errors import ConfigError
from memdist.search import sweep


def runs(*overrides: str) -> list[tuple[str, ...]]:
    return [cell.overrides for cell in sweep.expand(overrides)]


def test_the_last_setting_changes_fastest() -> None:
    assert runs("a=1,2", "b=x", "c=u,v") == [
        ("a=1", "b=x", "c=u"),
        ("a=1", "b=x", "c=v"),
        ("a=2", "b=x", "c=u"),
        ("a=2", "b=x", "c=v"),
    ]


def test_folders_are_named_after_what_differs() -> None:
    assert [cell.name for cell in sweep.expand(["a=1,2", "b=x", "c=u,v"])] == [
        "a=1,c=u",
        "a=1,c=v",
        "a=2,c=u",
        "a=2,c=v",
    ]
    assert [cell.name for cell in sweep.expand(["b=x"])] == ["run"]
    names = {cell.name for cell in sweep.expand(["data.images=/a/b,../b,.x," + "y" * 300 + "," + "y" * 301])}
    assert len(names) == 5 and not any("/" in name or name.startswith(".") or len(name) > 200 for name in names)


@pytest.mark.parametrize("given_", [["a=1,2", "a=3,4"], ["a=1,2", "b=0", "a=3"], ["a=3", "a=1,2"]])
def test_a_key_that_is_swept_is_given_once(given_: list[str]) -> None:
    with pytest.raises(ConfigError, match="a is swept, and given again; name all its values in one"):
        sweep.expand(given_)
    assert runs("a=1", "a=2") == [("a=1", "a=2")]  # the last one counts, as without -m


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("1e-3,1e-4", ["1e-3", "1e-4"]),
        ("1e-3 , 1e-4", ["1e-3", "1e-4"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("[1,2]", ["[1,2]"]),
        ("{a: 1, b: 2},{}", ["{a: 1, b: 2}", "{}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("range(3)", ["0", "1", "2"]),
        ("range(0,5)", ["0", "1", "2", "3", "4"]),
        ("range(5, 0, -2)", ["5", "3", "1"]),
        ("choice(a, [1,2] ,c)", ["a", "[1,2]", "c"]),
        ("null", ["null"]),
        ("", [""]),
        ("a b", ["a b"]),
        ("range", ["range"]),
        ("x=y,z", ["x=y", "z"]),
    ],
)
def test_values(value: str, found: list[str]) -> None:
    assert sweep.values("key", value) == found


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lr", "'lr' is no setting: write key=value"),
        ("lr=1,", "a value between commas is empty"),
        ("lr=,1", "a value between commas is empty"),
        ("lr=1,,2", "a value between commas is empty"),
        ("lr=choice(1,)", "a value between commas is empty"),
        ("lr=choice()", "name at least one value"),
        ("lr=1,1", "has a value twice"),
        ("lr=[1,2", "] is missing"),
        ("lr='1,2", "' is missing"),
        ("seed=range()", "it is range(end)"),
        ("seed=range(a,b)", "it is range(end)"),
        ("seed=range(1,2,3,4)", "it is range(end)"),
        ("seed=range(0,5,0)", "a step of 0 never ends"),
        ("seed=range(5,0)", "stands for 0 values"),
        ("seed=range(0,200000)", "stands for 200000 values"),
        ("seed=range(0,999999999999999999)", "values: from 1 to 100000 can be"),
    ],
)
def test_what_cannot_be_swept(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        sweep.expand([override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_too_many_runs_are_counted_before_they_are_made() -> None:
    with pytest.raises(ConfigError, match="stand for 1000000000000 runs, and 100000 is the most"):
        sweep.expand(["a=range(10000)", "b=range(10000)", "c=range(10000)"])


_WORD = some.text("abcXYZ019.-_/ é\n;$`", min_size=1).filter(lambda text: text == text.strip() != "")


@given(some.lists(_WORD, min_size=2, max_size=5, unique=True))
def test_values_without_signs_are_parted_as_they_were_joined(words: list[str]) -> None:
    assert sweep.values("key", ",".join(words)) == words


@given(some.text())
def test_any_text_is_values_or_a_sentence(text: str) -> None:
    try:
        assert sweep.values("key", text)
    except ConfigError as error:
        assert "\n" not in str(error)
