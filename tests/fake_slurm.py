"""Programs of Slurm that answer what they are told to and note how they were called, and a login node with them."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from memdist import cli, config, rundir
from memdist.cluster import facts
from tests import tiny

SINFO = """\
gpu|2-00:00:00|4|gpu:a100:4(S:0-1)|64+|515000|gpu*
cpu|infinite|10|(null)|128|257000+|cpu
short|30:00|2|(null)|128|257000|short
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

    def queued(self, *ids: str, state: str = "PENDING", names: str = "") -> None:
        """What squeue shows: jobs by the names that sbatch was given, or by another."""
        given = {str(number): re.search(r"--job-name=(\S+)", text) for number, text in self.scripts().items()}
        named = {
            each: names or (found[1] if (found := given.get(each.partition("_")[0])) else "memdist") for each in ids
        }
        lines = [f"{each}|{each}|{state}|0:00|1:00:00|N/A|N/A||{name}|Priority" for each, name in named.items()]
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


PROFILES = {
    "site": "partition: gpu\nshared: [{tmp}]\nmax_time: 1-00:00:00\n",
    "wrong": "partiton: gpu\nsignal_lead: soon\n",
    "narrow": "shared: [{tmp}/data]\n",
    "own": "partition: gpu\n",
    "lost": "partition: nowhere\nshared: [{tmp}]\n",
    "cpus": "partition: cpu\nshared: [{tmp}]\n",
    "short": "partition: gpu\ncpu_partition: short\nshared: [{tmp}]\n",
    "legs": "partition: gpu\nshared: [{tmp}]\nrequeue: false\n",
}
SETTINGS = """
model: {name: unet, channels: 4, multipliers: [1, 2, 2], norm: instance}
epochs: 1
data: {size: 16}
batch: {size: 4}
device: cpu
"""


class Login:
    """A login node: a home with profiles, a configuration, a run that was finished, pictures; and what stands there."""

    def __init__(self, tmp: Path, slurm: Slurm, err: Callable[[], str]) -> None:
        self.tmp, self.slurm, self.err = tmp, slurm, err
        clusters = tmp / "config" / "memdist" / "clusters"
        clusters.mkdir(parents=True)
        for name, text in PROFILES.items():
            (clusters / f"{name}.yaml").write_text(text.format(tmp=tmp))
        (tmp / "home").mkdir()
        (tmp / "home" / "my.yaml").write_text(SETTINGS)
        (tmp / "home" / "bad.yaml").write_text(SETTINGS + "epoch: 3\n")
        (tmp / "pictures").mkdir()
        for number in range(5):
            Image.new("RGB", (16, 16)).save(tmp / "pictures" / f"{number}.png")
        self.run = tmp / "run"
        self.run.mkdir()
        (self.run / rundir.CONFIG).write_text(config.dump(tiny.run("unet", tmp / "data")))
        (tmp / "empty").mkdir()

    def files(self) -> set[str]:
        return {str(path.relative_to(self.tmp)) for path in self.tmp.rglob("*") if "slurm" not in path.parts}

    def memdist(self, *words: object) -> int:
        """Exit code of a command."""
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        return int(end.value.code or 0)

    def refused(self, *words: object) -> str:
        """The one sentence that a command gets, which leaves nothing behind."""
        before = self.files()
        code, sentence = self.memdist(*words), self.err()
        assert code == 2 and sentence.startswith("memdist: ") and "Traceback" not in sentence, sentence
        assert self.files() == before
        return sentence


def login(tmp: Path, monkeypatch: pytest.MonkeyPatch, err: Callable[[], str]) -> Login:
    """Log in: what is called from now on is called there. `err` gives what was printed as mistakes."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp / "config"))
    monkeypatch.setattr(facts.call, "__defaults__", (3.0,))  # which else waits for half a minute
    found = Login(tmp, Slurm(tmp / "slurm", monkeypatch), err)
    monkeypatch.chdir(tmp / "home")
    return found


def train(place: Login, *more: object, out: str = "new") -> tuple[object, ...]:
    return ("submit", "train", "my.yaml", "--out", place.tmp / out, "--cluster", "site", *more)


def predict(place: Login, *more: object) -> tuple[object, ...]:
    words = ("submit", "predict", place.run, place.tmp / "pictures", "--out", place.tmp / "maps", "--cluster", "site")
    return (*words, *more)
