"""Lengths of time: people's, Slurm's, and those that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from memdist import times
from memdist.errors import ConfigError

HOUR, DAY = 3600, 86400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 8 * HOUR),
        ("90m", 5400),
        ("90min", 5400),
        ("45s", 45),
        ("2d12h", 2 * DAY + 12 * HOUR),
        ("1d2h3m4s", DAY + 2 * HOUR + 184),
        (" 8H ", 8 * HOUR),
        ("30", 1800),
        ("30:15", 1815),
        ("8:00:00", 8 * HOUR),
        ("1-12", DAY + 12 * HOUR),
        ("1-12:30", DAY + 12 * HOUR + 1800),
        ("1-12:30:05", DAY + 12 * HOUR + 1805),
        ("0-00:00:01", 1),
    ],
)
def test_both_ways_of_writing_a_length(text: str, seconds: int) -> None:
    assert times.seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", "0h", "00:00:00", "-1", "1.5h", "h", "8 h", "12h2d", "1:2:3:4", "1-", "1-2:3:4:5", "infinite", "٣h"]
    + ["8h;rm", "1e3", "9" * 5000, "1\n2"],
)
def test_what_is_no_length_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        times.seconds(text)
    assert str(error.value).startswith("--time '") and "8h, 90m, 2d12h" in str(error.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("infinite", None), ("UNLIMITED", None), ("n/a", None), ("", None), ("junk", None), ("2-00:00:00", 2 * DAY)]
    + [("12:00:00", 12 * HOUR), ("30:00", 1800)],
)
def test_limits_as_sinfo_writes_them(text: str, seconds: int | None) -> None:
    assert times.limit(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "slurm", "shown"),
    [
        (45, "00:00:45", "45s"),
        (60, "00:01:00", "1m"),
        (5400, "01:30:00", "90m"),
        (8 * HOUR, "08:00:00", "8h"),
        (DAY, "1-00:00:00", "1d"),
        (2 * DAY + 12 * HOUR, "2-12:00:00", "2d 12h"),
    ],
)
def test_lengths_are_written(seconds: int, slurm: str, shown: str) -> None:
    assert times.slurm(seconds) == slurm
    assert times.shown(seconds) == shown


@given(some.integers(1, 10**8))
def test_what_slurm_is_told_is_read_back(seconds: int) -> None:
    assert times.seconds(times.slurm(seconds)) == times.limit(times.slurm(seconds)) == seconds


@given(some.integers(1, 10**8))
def test_what_is_shown_never_says_more_than_there_is(seconds: int) -> None:
    # A person is told to give the limit as it is shown: it must not be over it.
    assert 0 < times.seconds(times.shown(seconds).replace(" ", "")) <= seconds
