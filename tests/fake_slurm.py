"""Programs of Slurm that answer what they are told to, and note how they were called."""

import os
from pathlib import Path

import pytest

SINFO = """\
gpu|2-00:00:00|4|gpu:a100:4(S:0-1)|64+|515000|gpu*
cpu|infinite|10|(null)|128|257000+|cpu
"""

_SINFO = """cat "$here/sinfo.txt" """

_SCONTROL = """cat "$here/scontrol.txt" """

_SQUEUE = """cat "$here/squeue.txt" """

_SBATCH = """
number=$(($(cat "$here/number") + 1))
echo "$number" >"$here/number"
if [ -e "$here/refuse-$number" ]; then
    cat "$here/refuse-$number" >&2
    exit 1
fi
cat "$1" >"$here/$number.sbatch"
echo "Submitted batch job $number"
"""

_SCANCEL = """if [ -e "$here/refuse-scancel" ]; then
    cat "$here/refuse-scancel" >&2
    exit 1
fi
"""


class Slurm:
    """A folder with the programs, at the front of PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in {"sinfo": SINFO, "scontrol": "MaxArraySize = 1001\n", "squeue": ""}.items():
            (folder / f"{name}.txt").write_text(text)
        (folder / "number").write_text("100\n")
        programs = {"sinfo": _SINFO, "scontrol": _SCONTROL, "squeue": _SQUEUE, "sbatch": _SBATCH, "scancel": _SCANCEL}
        for name, body in programs.items():
            self.program(name, body)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def program(self, name: str, body: str) -> None:
        """Put a program there, which notes its call first."""
        note = f'here={self.folder}\necho "{name} $*" >>"$here/calls"\n'
        (self.folder / name).write_text(f"#!/bin/sh\n{note}{body}\n")
        (self.folder / name).chmod(0o755)

    def refuse(self, number: int, words: str) -> None:
        """Have sbatch refuse the job that would have had a number."""
        (self.folder / f"refuse-{number}").write_text(words)

    def queued(self, *ids: str, state: str = "PENDING") -> None:
        """What squeue shows."""
        lines = [f"{each}|{each}|{state}|0:00|1:00:00|N/A|N/A||memdist|Priority" for each in ids]
        (self.folder / "squeue.txt").write_text("\n".join([*lines, ""]))

    def calls(self, program: str) -> list[str]:
        """How a program was called."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.removeprefix(f"{program} ") for line in lines if line.split()[0] == program]

    def scripts(self) -> dict[int, str]:
        """What sbatch was given, by number."""
        return {int(path.stem): path.read_text() for path in sorted(self.folder.glob("[0-9]*.sbatch"))}


def without(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A machine on which no program of Slurm can be found."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("PATH", str(folder))
