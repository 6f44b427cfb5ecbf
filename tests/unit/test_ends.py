"""How ranks end, and which of several ends is the cause of the others."""

import signal
from pathlib import Path

import pytest

from memdist import errors
from memdist.errors import ConfigError
from memdist.launch import ends, forward
from memdist.launch.ends import End

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"


class DistNetworkError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    ("given", "worst", "code"),
    [
        ([End(0, 0), End(1, 0)], None, 0),
        ([End(0, 75), End(1, 0)], None, 75),
        # The one that lost another was seen first.
        ([End(0, 1, "lost", 1.0), End(1, 1, "own", 2.0)], 1, 1),
        ([End(0, 1, "lost", 1.0), End(2, -signal.SIGKILL, at=3.0), End(1, 1, "lost", 2.0)], 2, 1),
        # Nobody knows more.
        ([End(0, 1, "lost", 2.0), End(1, 1, "lost", 1.0)], 1, 1),
        # NCCL's watchdog aborts those that wait.
        ([End(0, -signal.SIGABRT, at=1.0), End(1, 1, "own", 2.0)], 1, 1),
        ([End(0, -signal.SIGABRT, at=1.0), End(1, 1, "lost", 0.5)], 0, 1),
        ([End(0, 1, "own", 2.0), End(1, 1, "own", 1.0)], 1, 1),
        # All have found the same mistake.
        ([End(2, 2, at=1.0), End(1, 2, at=2.0), End(0, 0)], 1, 2),
        ([End(0, 2, at=2.0), End(1, 1, at=1.0)], 1, 1),
        ([End(0, 130, at=1.0), End(1, 1, "lost", 0.5)], 0, 130),
        ([End(0, 75), End(1, 1, "told")], 1, 1),
    ],
)
def test_the_cause(given: list[End], worst: int | None, code: int) -> None:
    for order in (given, given[::-1]):
        found = ends.cause(order)
        assert (found and found.rank) == worst
        assert ends.code_of(order) == code


def test_ends_in_words() -> None:
    assert ends.describe(End(3, -9)) == "rank 3 was killed by SIGKILL (out of memory?)"
    assert ends.describe(End(3, -11)) == "rank 3 was killed by SIGSEGV"
    assert ends.describe(End(3, -99)) == "rank 3 was killed by signal 99"
    assert ends.describe(End(3, 1)) == "rank 3 ended with exit code 1"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError(GLOO), "the connection to another rank was lost"),
        (
            DistNetworkError("NCCL: remote process exited or there was a network error"),
            "the connection to another rank",
        ),
        (DistNetworkError("The client socket has timed out after 60000ms"), "rank 0 was not met at a:1"),
        (DistNetworkError("The server socket has failed to listen. port: 1, EADDRINUSE"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError(GLOO), None),
    ],
)
def test_the_loss_of_a_peer_is_told_from_a_fault(
    error: Exception, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "a")
    monkeypatch.setenv("MASTER_PORT", "1")
    found = ends.lost(error)
    assert (found is None) if says is None else says in (found or "")


def test_a_connection_that_fails_on_the_way_out_of_a_fault_hides_nothing() -> None:
    try:
        try:
            raise ZeroDivisionError
        finally:
            raise RuntimeError(GLOO)
    except RuntimeError as error:
        assert ends.lost(error) is None


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a job of which this process is rank 1."""
    monkeypatch.setenv(ends.JOB, str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ends, "LOST", 0.0)
    monkeypatch.setattr(forward, "binder", lambda: lambda: None)  # the tests' process is nobody's rank
    return tmp_path


def end(error: BaseException | None, cause: Exception | None = None) -> int | str | None:
    """Exit code with which a process that ends so does."""
    with pytest.raises(BaseException) as caught, ends.told():
        if cause is not None:
            try:
                raise cause
            except Exception:
                raise error or SystemExit(2)  # noqa: B904
        if error is not None:
            raise error
        raise SystemExit(0)
    return caught.value.code if isinstance(caught.value, SystemExit) else None


def test_what_a_rank_leaves(rank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistake = ConfigError("no")
    errors.shared(mistake)
    # exit code, as its launcher sees it; as it was noted; whose it is
    told = [
        (end(None), 0, (0, "own")),
        (end(SystemExit(75)), 0, (75, "agreed")),
        (end(SystemExit(2), mistake), 0, (2, "agreed")),
        (end(SystemExit(2), ConfigError("mine")), 2, (2, "own")),
        (end(SystemExit(130)), 130, (130, "own")),
        (end(ZeroDivisionError()), None, (1, "own")),
        (end(RuntimeError(GLOO)), 1, (1, "lost")),
    ]
    for code, seen, _ in told:
        assert code == seen
    assert capsys.readouterr().err.startswith("memdist (rank 1): the connection to another rank was lost")
    assert ends.left(rank, 1) == (1, "lost") and ends.left(rank, 0) is None
    assert list(ends.registered(rank)) == [1]
    for given, seen, noted in (((75, "agreed"), 0, (75, "agreed")), ((2, "own"), 2, (2, "own"))):
        assert ends.leave(*given) == seen and ends.left(rank, 1) == noted  # type: ignore[arg-type]


def test_one_process_alone_notes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ends.told():
        raise RuntimeError(GLOO)
    with pytest.raises(SystemExit) as caught, ends.told():
        raise SystemExit(75)
    assert caught.value.code == 75
