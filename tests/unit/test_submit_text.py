"""Scripts for sbatch: their whole text, and that no word of a person's does anything in one but stand there.

`python -m tests.unit.test_submit_text` writes the golden texts anew.
"""

import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from memdist.cluster import book, leg, profile, text
from memdist.cluster.profile import Cluster
from memdist.cluster.text import Job

GOLDEN = Path(__file__).parents[1] / "golden" / "sbatch"
PYTHON = "/opt/memdist/.venv/bin/python"
PLAIN = Cluster(python=PYTHON)
FULL = Cluster(
    partition="accel",
    cpu_partition="standard",
    account="my-project",
    qos="normal",
    constraint="a100&nvlink",
    gpu_form="gres",
    gpu_type="a100",
    cpus_per_gpu=16,
    memory_per_rank="60G",
    modules=("python/3.12", "cuda/12.6"),
    setup=("ulimit -n 65536",),
    environment={"NCCL_SOCKET_IFNAME": "ib0", "NOTE": "it's $HOME; `date`"},
    container="apptainer exec --nv /images/memdist.sif",
    python="python3",
    scratch="$TMPDIR",
    options=("--hint=nomultithread",),
)
RUN = Path("/home/me/runs/unet")
TRAIN = Job(
    kind="train",
    name="memdist-train-unet-1a2b3c4d",
    words=("train", "/home/me/runs/unet/jobs/train-5e6f7a8b.yaml", "--out", "/home/me/runs/unet"),
    place=RUN,
    folder=Path("/home/me"),
    seconds=8 * 3600,
    gpus=1,
)
MAPS = replace(
    TRAIN,
    kind="predict",
    name="memdist-predict-maps-1a2b3c4d",
    words=("predict", "/home/me/runs/unet", "/home/me/my pictures", "--checkpoint=best", "--out", "/home/me/maps"),
    place=Path("/home/me/maps"),
    numbers=(1001, 1002, 1003, 1007),
    offset=1000,
    total=1500,
    at_most=16,
)
JOBS = {
    "single": (TRAIN, PLAIN),
    "nodes": (replace(TRAIN, nodes=4, ranks=8, gpus=8, seconds=2 * 86400, after=("41", "42")), FULL),
    "array": (MAPS, Cluster(python=PYTHON, partition="gpu")),
    "verify": (
        replace(
            MAPS,
            kind="verify",
            name="memdist-verify-maps-1a2b3c4d",
            words=(*MAPS.words, "--verify"),
            numbers=(),
            offset=0,
            total=0,
            at_most=None,
            gpus=0,
            behind=("101", "102"),
        ),
        Cluster(python=PYTHON, partition="gpu", cpu_partition="cpu"),
    ),
    "search": (
        replace(
            TRAIN,
            kind="search",
            name="memdist-search-palette-1a2b3c4d",
            words=("search", "run", "/home/me/s/jobs/space-5e6f7a8b.yaml", "search.method=asha", "--out", "/home/me/s"),
            place=Path("/home/me/s"),
            nodes=3,
            gpus=8,
            cpus=128,
        ),
        FULL,
    ),
    "chained": (replace(TRAIN, chained=True), Cluster(python=PYTHON, requeue=False, signal_lead=0)),
    "odd-place": (
        replace(TRAIN, place=Path("/home/me/é 100%\n#SBATCH --wrap=x"), folder=Path("/home/me/it's here")),
        PLAIN,
    ),
}


def test_signals_that_come_before_python_do_not_end_a_job() -> None:
    ready = text.render(TRAIN, Cluster()).partition("umask 077\n")[2].partition("cd --")[0]
    caught = "import os, signal; signal.signal(15, lambda *_: print('caught')); os.kill(os.getpid(), 15)"
    script = f"{ready}kill -USR2 $$; kill -TERM $$; exec python3 -c {text.quoted(caught)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "caught\n"


@pytest.mark.parametrize("name", JOBS)
def test_the_whole_text(name: str) -> None:
    assert text.render(*JOBS[name]) == (GOLDEN / f"{name}.sbatch").read_text()


def test_no_golden_text_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(JOBS)


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.sbatch")), ids=lambda file: file.stem)
def test_texts_are_clean_shell(file: Path) -> None:
    subprocess.run(["bash", "-n", file], check=True)
    if shutil.which("shellcheck"):
        # SC2016: what a person meant for others to expand stays as it is.
        done = subprocess.run(["shellcheck", "--exclude=SC2016", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", JOBS)
def test_the_leg_takes_what_it_is_given(name: str) -> None:
    job, cluster = JOBS[name]
    given_ = leg.options(text.options(job, cluster))
    assert (given_.place, given_.ranks, tuple(given_.words)) == (job.place, job.ranks, job.words)
    assert (given_.offset, given_.total, given_.lead) == (job.offset, job.total, cluster.signal_lead)
    assert given_.again == ("chain" if job.chained or not cluster.requeue else "requeue")


@pytest.mark.parametrize(
    ("numbers", "most", "pieces"),
    [
        ([1, 2, 3], 1001, [(0, (1, 2, 3))]),
        ([1, 2, 3, 4, 5], 3, [(0, (1, 2)), (2, (3, 4)), (4, (5,))]),
        ([1000, 1001], 1001, [(0, (1000,)), (1000, (1001,))]),
        ([7], 2, [(6, (7,))]),
        ([3, 1], 1001, [(0, (1, 3))]),
        ([], 1001, []),
    ],
)
def test_arrays_are_cut(numbers: list[int], most: int, pieces: list[tuple[int, tuple[int, ...]]]) -> None:
    assert text.cut(numbers, most) == pieces


@given(some.sets(some.integers(1, 5000), max_size=60), some.integers(2, 2000))
def test_cut_arrays_have_every_number_once_below_the_limit(numbers: set[int], most: int) -> None:
    pieces = text.cut(sorted(numbers), most)
    assert sorted(number for _, some_ in pieces for number in some_) == sorted(numbers)
    assert all(0 < number - offset < most for offset, some_ in pieces for number in some_)


def test_indices() -> None:
    assert text.indices([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"


# Words


_PAYLOADS = [
    "; touch PWNED;",
    "$(touch PWNED)",
    "`touch PWNED`",
    "\ntouch PWNED\n",
    "' touch PWNED '",
    '" & touch PWNED "',
]
_PAYLOADS += [
    "\n#SBATCH --wrap=PWNED",
    "\r\n",
    "%j",
    "%A_%a",
    "--",
    "-n",
    "--out",
    "\\",
    "\\'",
    "$HOME",
    "{1,2}",
    "*",
    "~",
]
_PAYLOADS += [
    "é",
    "日本",
    "\u202e",
    "\U0001f600",
    "\x1b[2J",
    "\x7f",
    "!!",
    "#",
    "\t",
    "\\n",
    "$'x'",
    " ",
    "\x85",
    "\udcff",
]
_CHARACTER = some.characters(exclude_characters="\0", exclude_categories=["Cs"])
_WORD = some.lists(some.sampled_from(_PAYLOADS) | some.text(_CHARACTER, max_size=4), max_size=5).map("".join)
_NAME = _WORD.map(lambda word: word.replace("/", "_")).filter(
    lambda name: name not in ("", ".", "..") and len(os.fsencode(name)) <= 200
)

_DUMPER = '#!/bin/sh\nprintf \'%s\\0\' "$@" >"${0%/*}/words"\n'


def _lines(script: str) -> list[str]:
    return [line for line in script.split("\n") if line.lstrip().startswith("#")]


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(name=_NAME, above=_NAME, words=some.lists(_WORD, max_size=3), array=some.booleans())
def test_words_reach_the_leg_as_they_are_and_do_nothing_else(
    name: str, above: str, words: list[str], array: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        (tmp / "python").write_text(_DUMPER)
        (tmp / "python").chmod(0o755)
        current = tmp / "current" / above
        place = current / name
        book.logs(place).mkdir(parents=True)
        job = replace(
            TRAIN,
            name=text.name(["memdist", "train", name]),
            words=("train", *words, "--out", str(place)),
            place=place,
            folder=current,
            numbers=(3,) if array else (),
            total=9 if array else 0,
        )
        cluster = Cluster(python=str(tmp / "python"), environment={"NOTE": "".join(words).replace("\udcff", "")})
        script = text.render(job, cluster)
        (tmp / "script").write_text(script)  # what has no sign of its own is spelled out: any text is UTF-8
        job_environment = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
        before = {path for path in tmp.rglob("*")}
        done = subprocess.run(
            ["bash", str(tmp / "script")],
            env={"PATH": os.environ["PATH"], **job_environment},
            capture_output=True,
            cwd=tmp,
        )
        assert done.returncode == 0 and not done.stdout + done.stderr, done
        got = [os.fsdecode(word) for word in (tmp / "words").read_bytes().split(b"\0")[:-1]]
        assert got == ["-P", "-m", "memdist.cluster.leg", *text.options(job, cluster)]
        assert leg.options(got[3:]).words == list(job.words)
        log = {book.logs(place) / ("7_3.log" if array else "7.log")} if not text.plain(place) else set()
        assert {path for path in tmp.rglob("*")} - before == {tmp / "words"} | log
        # Nothing that was typed begins a line, or is an option of sbatch.
        directives = [f"#SBATCH {option}" for option in text.directives(job, cluster)]
        assert [line for line in _lines(script) if line.startswith("#SBATCH")] == directives
        assert len(_lines(script)) == len(directives) + 2


@given(_WORD, _NAME)
def test_names_of_jobs_are_plain(word: str, name: str) -> None:
    found = text.name(["memdist", "train", word, name])
    assert 0 < len(found) <= 100 and all(c.isascii() and (c.isalnum() or c in "._-") for c in found)
    assert not found.startswith("-")


@given(_NAME)
def test_no_option_of_sbatch_has_what_was_typed(name: str) -> None:
    job = replace(TRAIN, place=Path("/home/me") / f"{name} x")  # no plain one
    assert "--output=/dev/null" in text.directives(job, PLAIN)
    assert text.directives(job, PLAIN) == text.directives(replace(TRAIN, place=Path("/a b")), PLAIN)


def test_options_are_one_line_each() -> None:
    for job, cluster in JOBS.values():
        for option in text.directives(job, cluster):
            assert option.isprintable() and " " not in option


def test_memory_is_that_of_all_ranks() -> None:
    for given_, asked in {"60G": "--mem=240G", "4000": "--mem=16000", "0": "--mem=0"}.items():
        assert asked in text.directives(replace(TRAIN, ranks=4), Cluster(memory_per_rank=given_))


def test_a_job_without_gpus_goes_to_its_own_partition() -> None:
    cluster = Cluster(partition="gpu", cpu_partition="cpu")
    assert "--partition=cpu" in text.directives(replace(TRAIN, gpus=0), cluster)
    assert not any("gpu" in option for option in text.directives(replace(TRAIN, gpus=0), cluster))


def test_the_python_that_submits_is_the_default() -> None:
    assert f"exec {profile.Cluster().python_words} -P -m memdist.cluster.leg" in text.render(TRAIN, Cluster())


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, (job, cluster) in JOBS.items():
        (GOLDEN / f"{name}.sbatch").write_text(text.render(job, cluster))
