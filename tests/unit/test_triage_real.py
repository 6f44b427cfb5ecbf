"""What programs ended of that really fail, and logs that are no text, none, or too long."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdist import cli, rundir, triage
from memdist.errors import printable
from memdist.triage import Finding, Kind
from tests import tiny

FULL = "import sys; sys.stdout = open('/dev/full', 'w')"


def run(folder: Path, program: str, limit: int | None = None) -> Finding:
    """Run a program of Python whose output goes into a log; `limit`: bytes of memory that it may have."""
    before = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n" if limit else ""
    log = folder / "log"
    with open(log, "wb") as file:
        code = subprocess.run(
            [sys.executable, "-c", before + program], stdout=file, stderr=file, timeout=300
        ).returncode
    return triage.judge(code, {"log": triage.tail(log)})


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize(
    ("kind", "program", "shown"),
    [
        ("host-memory", "bytearray(10**11)", "MemoryError"),
        ("disk-full", "open('/dev/full', 'w').write('x' * 10**6)", "OSError: [Errno 28] No space left on device"),
        ("disk-full", f"{FULL}; from memdist import cli; cli.main(['models', 'show', 'unet'])", "memdist: "),
        ("host-memory", "import os; os.kill(os.getpid(), 9)", ""),
        ("bug", "import ctypes; ctypes.string_at(0)", ""),
        ("bug", "1 / 0", "ZeroDivisionError: division by zero"),
        (
            "bug",
            "try:\n 1 / 0\nexcept ValueError:\n pass\nfinally:\n open('/nowhere')",
            "ZeroDivisionError: division by zero",
        ),
        ("communication", "import socket; socket.create_connection(('127.0.0.1', 1))", "ConnectionRefusedError: "),
        ("wrong-input", "import memdist_that_is_not_there", "ModuleNotFoundError: "),
        ("cancelled", "import os; os.kill(os.getpid(), 2)", ""),
        ("finished", "print(1)", ""),
    ],
)
def test_programs(kind: Kind, program: str, shown: str, tmp_path: Path) -> None:
    found = run(tmp_path, program, limit=2**30 if "bytearray" in program else None)
    assert found.kind == kind, found
    assert found.lines[-1].text.startswith(shown) if shown else True


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_shell_that_tells_of_its_program(tmp_path: Path) -> None:
    script = tmp_path / "slurm_script"
    script.write_text(f"{sys.executable} -c 'import os; os.kill(os.getpid(), 9)'\nexit $?\n")
    told = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=60)
    found = triage.judge(told.returncode, {"batch": told.stderr.splitlines()})
    assert (told.returncode, found.kind, found.retry, len(found.lines)) == (137, "host-memory", True, 1)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("finished", {"epochs": 1}),
        ("wrong-input", {"batch.sise": 4}),
        ("wrong-input", {"precision": "fp16"}),
        ("bad-data", {"data.images": "/nowhere"}),
        ("bad-data", {"data.maps": "broken"}),
        ("diverged", {"optim.unet.lr": 1e30, "log.every": 1}),
    ],
)
def test_memdist(
    kind: Kind,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MEMDIST_CACHE", str(tmp_path / "cache"))
    folder = tiny.data(tmp_path / "data")
    if settings.get("data.maps") == "broken":
        settings = {}
        picture = min((folder / "maps").iterdir())
        picture.write_bytes(picture.read_bytes()[:100])
    (tmp_path / "unet.yaml").write_text(json.dumps(tiny.raw("unet", folder)))
    words = [f"{key}={value}" for key, value in settings.items()]
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["train", str(tmp_path / "unet.yaml"), *words, "--out", str(tmp_path / "run")])
    code, told = end.value.code, capfd.readouterr()
    assert isinstance(code, int)
    noted = rundir.read_json(tmp_path / "run" / rundir.STATE)
    found = triage.judge(code, {"log": [*told.out.splitlines(), *told.err.splitlines()]}, noted=noted)
    assert found.kind == kind, (found, told)
    assert kind == "finished" or (found.lines and found.lines[0].text.startswith("memdist: "))
    if kind == "diverged":
        assert triage.judge(code, {}, noted=noted).kind == kind


def test_a_tail_is_the_end_of_a_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open(log, "wb") as file:
        file.seek(10**10)  # what it does not hold is never read
        file.write(b"\nthe end\rof \x1b[31mit\x1b[0m\x07\t\xff\xc3\xa9\r\n\n" + b"\0" * 1000)
    assert triage.tail(log) == ["the end", "of it\\x07  \\xffé"]
    log.write_text("first\nsecond\nthird\n")
    assert triage.tail(log, 12) == ["third"]
    assert triage.tail(log, 13) == ["second", "third"]
    assert triage.tail(log, 1000, start=6) == ["second", "third"]
    assert triage.tail(log, 1000, start=10**6) == []
    log.write_text("x" * 10**5)
    assert [len(line) for line in triage.tail(log)] == [2000]


def test_what_is_no_file_has_no_tail(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe", "absent", "a\0b"):
        assert triage.tail(tmp_path / name) == []


@given(
    st.binary(max_size=400) | st.lists(st.sampled_from([b"\n", b"Traceback", b"\xff", b"\r", b"\x1b[3"])).map(b"".join),
    st.integers(0, 99),
)
@settings(deadline=None, derandomize=True, database=None)
def test_any_bytes_have_a_tail(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int) -> None:
    log = tmp_path_factory.getbasetemp() / "junk"
    log.write_bytes(data)
    lines = triage.tail(log, size)
    assert all(line == printable(line) and line.strip() for line in lines)
    assert triage.judge(1, {"log": lines}).advice
