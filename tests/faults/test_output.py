"""Standard output that is full or gone: training goes on, and whatever else has something to show says so in a sentence."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from memdist import cli, config, models, output, rundir
from memdist.errors import MemdistError
from memdist.train import checkpoint, evaluate, loop
from tests import tiny

full = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, and with the scored run that comes of it."""
    here = tmp_path_factory.mktemp("place")
    raw = tiny.raw("unet", tiny.data(here / "data"), **{"log.every": 1, "epochs": 2})
    (here / "config.yaml").write_text(yaml.safe_dump(raw))
    assert loop.train(models.resolve(config.read(here / "config.yaml")), here / "whole") == 0
    evaluate.evaluate(here / "whole", ["val", "test"])
    return here


def started(words: list[object], out: int | IO[bytes]) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-c", "from memdist.cli import main; main()", *map(str, words)]
    return subprocess.Popen(line, stdout=out, stderr=subprocess.PIPE)


def told(words: list[object], out: int | IO[bytes]) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    process = started(words, out)
    said = process.communicate(timeout=300)[1].decode()
    assert "Traceback" not in said and "Exception ignored" not in said, said
    return process.returncode, said


@pytest.fixture
def closed() -> Iterator[int]:
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def whole(place: Path, run: Path) -> bool:
    """Whether a run came to the end to which an undisturbed one came."""
    last = checkpoint.folder(place / "whole", checkpoint.steps(place / "whole")[-1])
    same = checkpoint.folder(run, checkpoint.steps(run)[-1])
    return (
        rundir.read_json(run / rundir.STATE)["state"] == "finished"
        and (run / rundir.METRICS).read_bytes() == (place / "whole" / rundir.METRICS).read_bytes()
        and (last / checkpoint.NETS).read_bytes() == (same / checkpoint.NETS).read_bytes()
    )


@full
def test_training_into_a_full_output_goes_on(place: Path, tmp_path: Path) -> None:
    with open("/dev/full", "wb") as out:
        code, said = told(["train", place / "config.yaml", "--out", tmp_path / "run"], out)
    assert code == 0, said
    assert whole(place, tmp_path / "run")


def test_training_goes_on_when_its_reader_leaves(place: Path, tmp_path: Path) -> None:
    process = started(["train", place / "config.yaml", "--out", tmp_path / "run"], subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(300) == 0 and "Traceback" not in said and "Exception ignored" not in said, said
    assert whole(place, tmp_path / "run")


@full
def test_what_only_shows_says_that_it_cannot(place: Path) -> None:
    with open("/dev/full", "wb") as out:
        code, said = told(["compare", place / "whole"], out)
    (sentence,) = said.splitlines()
    assert code == 2
    assert sentence.startswith(
        "memdist: standard output cannot be written: no space left on device; files that were named"
    )


def test_what_only_shows_says_that_nobody_reads(place: Path, closed: int) -> None:
    code, said = told(["models", "show", "unet"], closed)
    assert code == 2
    assert said.startswith("memdist: standard output cannot be written: broken pipe; ") and said.count("\n") == 1


@full
def test_scores_are_written_although_they_cannot_be_shown(place: Path) -> None:
    before = rundir.read_json(place / "whole" / rundir.SCORES)
    (place / "whole" / rundir.SCORES).unlink()
    with open("/dev/full", "wb") as out:
        code, said = told(["evaluate", place / "whole"], out)
    assert code == 2 and said.splitlines()[-1].startswith("memdist: standard output cannot be written"), said
    scored = rundir.read_json(place / "whole" / rundir.SCORES)
    assert scored["test"]["metrics"] == before["test"]["metrics"]


@full
def test_help_into_a_full_output_is_a_sentence() -> None:
    with open("/dev/full", "wb") as out:
        code, said = told(["--help"], out)
    assert code == 2
    assert (
        said
        == "memdist: a file or the output cannot be written: no space left on device; make room, or choose another place\n"
    )


# Without a process of their own


class Refusing:
    """A terminal that hangs up after some writes."""

    encoding = "utf-8"

    def __init__(self, writes: int) -> None:
        self.left, self.text = writes, ""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(5, "Input/output error")
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_bars_end_with_their_terminal(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal: Any = Refusing(6)
    monkeypatch.setattr(sys, "stdout", terminal)
    raised: list[object] = []
    monkeypatch.setattr("threading.excepthook", raised.append)
    assert loop.train(models.resolve(config.read(place / "config.yaml")), tmp_path / "run") == 0
    assert "epoch" in terminal.text and terminal.left < 0
    assert raised == []
    assert whole(place, tmp_path / "run")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_cannot_be_shown_are_spelled_out(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal: Any = Refusing(99)
    terminal.encoding = encoding
    monkeypatch.setattr(sys, "stdout", terminal)
    output.console(needed=True).print("maps\udcff in :car: [red]é", soft_wrap=True)
    assert terminal.text == "maps\\udcff in :car: [red]" + ("é\n" if encoding == "utf-8" else "\\xe9\n")


def test_an_output_that_is_needed_raises_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(0))
    console = output.console(needed=True)
    with pytest.raises(MemdistError, match="standard output cannot be written: input/output error"):
        console.print("words")


@pytest.mark.parametrize("number", [28, 122, 5, 32])
def test_a_write_without_a_name_gets_a_sentence(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(output, "mute", lambda: None)
    monkeypatch.setattr(cli, "app", lambda **_: refuse())
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("memdist: a file or the output cannot be written: ")


def test_another_fault_of_the_system_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["doctor"])
