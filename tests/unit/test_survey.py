"""How runs stand: by their folders, by whether their processes live, and by Slurm."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from memdist import locks, process, rundir
from memdist.cli import main
from memdist.cluster import book, maps, queue, standing, table, watching
from memdist.cluster.book import Attempt, Submitted
from memdist.cluster.queue import Queue
from memdist.cluster.standing import Row, Slurm
from memdist.cluster.survey import Survey, survey
from memdist.errors import ConfigError
from memdist.predict import folder as maps_folder
from memdist.predict import record
from memdist.process import Process
from memdist.train import loop
from tests import tiny

ROOT = Path(__file__).parents[2]
DEAD = replace(process.this(), pid=2**22 - 7, start=5)
OTHER = replace(process.this(), host="gpu07", boot="another", machine="another")
SILENT = "squeue is not installed here"


def make(path: Path, state: str = "running", owner: Process | None = None, **more: Any) -> Path:
    """A run folder as training leaves it at step 40 of 100."""
    path.mkdir(parents=True)
    (path / rundir.CONFIG).write_text("epochs: 3\n")
    if state:
        stands = {"state": state, "why": "", "step": 20, "steps": 100, "epoch": 1.0}
        (path / rundir.STATE).write_text(json.dumps(stands | more))
    lines = [{"step": step, "epoch": step / 20, "train/loss": 1 / step, "lr/unet": 1e-3} for step in range(10, 41, 10)]
    (path / rundir.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    clock = [{"step": 40, "steps_per_second": 12.0}, {"step": 40, "validation_seconds": 3.0}]
    (path / rundir.TIMING).write_text("".join(json.dumps(line) + "\n" for line in clock))
    if owner is not None:
        (path / ".lock.3").write_text(json.dumps({**asdict(owner), "nonce": "n", "released": 0, "count": "0"}))
    return path


def silence(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    for name in (".lock.3", rundir.STATE):
        if (path / name).exists():
            os.utime(path / name, (then, then))


def attempt(path: Path, job: str, restart: int = 0, share: str = "", **end: Any) -> None:
    one = Attempt(job=job, restart=restart, nodes="n1", began=time.time() - 60, since=0)
    file = book.attempts_file(path, share)
    book.began(file, one)
    if end:
        book.ended(file, replace(one, ended=time.time(), **end))


def submit(path: Path, id: str, kind: book.Kind = "train", **more: Any) -> None:
    path.mkdir(parents=True, exist_ok=True)
    book.note(path, Submitted(id=id, kind=kind, cluster="c", name="n", **more))


def answering(text: str = "") -> Slurm:
    lines = "".join(f"{line}\n" for line in text.split(";") if line)
    return Slurm(lambda: Queue(queue.parse(lines)))


def job(id: str, state: str = "PENDING", reason: str = "Priority", nodes: str = "") -> str:
    return f"{id}|{id}|{state}|0:00|1:00|N/A|N/A|{nodes}|n|{reason}"


def not_answering() -> Slurm:
    return Slurm(lambda: Queue(unknown=SILENT))


def not_asked() -> Slurm:
    def ask() -> Queue:
        raise AssertionError("nothing here is Slurm's matter")

    return Slurm(ask)


def one(path: Path, slurm: Slurm) -> Row:
    (row,) = survey(path, slurm).rows
    return row


@pytest.fixture(autouse=True)
def no_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "ended", lambda ids: {})


def test_names_are_those_that_predict_writes() -> None:
    assert (maps.RECORD, maps.MANIFEST) == (record.FILE, maps_folder.MANIFEST)


def test_a_training_while_it_runs_and_when_it_has_been_killed(tmp_path: Path) -> None:
    data = tiny.data(tmp_path / "data")
    raw = tiny.raw("unet", data, epochs=100_000, **{"log.every": 1})
    words = [sys.executable, "-m", "tests.drivers", json.dumps({"raw": raw, "out": str(tmp_path / "runs" / "a")})]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            rows = survey(tmp_path / "runs", not_asked()).rows if (tmp_path / "runs").is_dir() else ()
            if rows and rows[0].state == "running" and rows[0].speed:
                break
            time.sleep(0.05)
        (row,) = rows
        assert (row.name, row.group, row.state) == ("a", ".", "running")
        assert row.node == process.this().host and row.attempt == 0
        assert row.left and row.loss and row.epoch and row.step and row.steps == 100_000 * 18 // 4
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    row = one(tmp_path / "runs", not_asked())
    assert (row.state, row.left) == ("lost", None)
    assert row.why == f"process {child.pid} on {process.this().host} is gone"


def test_a_training_that_has_finished(tmp_path: Path) -> None:
    assert loop.train(tiny.run("pix2pix", tiny.data(tmp_path / "data"), epochs=1), tmp_path / "runs/p/a") == 0
    row = one(tmp_path / "runs", not_asked())
    assert (row.name, row.group, row.state, row.why) == ("a", "p", "finished", "")
    assert row.step == row.steps and row.loss is not None and row.loss > 10  # the generator's, not the critic's
    assert locks.owner(tmp_path / "runs/p/a") is None


@pytest.mark.parametrize(
    ("state", "owner", "slurm", "expected"),
    [
        ("stopped", None, not_asked, "stopped"),
        ("failed", None, not_asked, "failed"),
        ("diverged", None, not_asked, "diverged"),
        ("imported", None, not_asked, "imported"),
        ("running", process.this(), not_asked, "running"),
        ("running", DEAD, not_asked, "lost"),
        ("running", None, not_asked, "lost"),
        ("stopped", process.this(), not_asked, "starting"),
        ("running", OTHER, not_asked, "running?"),
        ("running", replace(OTHER, job="7"), lambda: answering(job("7", "RUNNING")), "running"),
        ("running", replace(OTHER, job="7.2"), lambda: answering(job("7", "RUNNING")), "running"),
        ("running", replace(OTHER, job="7"), lambda: answering(job("7")), "waiting"),
        ("running", replace(OTHER, job="7"), lambda: answering(job("8", "RUNNING")), "lost"),
        ("running", replace(OTHER, job="7"), lambda: answering(job("7", "COMPLETING")), "running?"),
        ("running", replace(OTHER, job="7"), not_answering, "running?"),
        ("running", replace(DEAD, job="7"), lambda: answering(job("7", "RUNNING")), "starting"),
        ("running", replace(DEAD, job="7"), lambda: answering(job("7", "REQUEUED")), "waiting"),
        ("running", replace(DEAD, job="7"), not_answering, "lost"),
        ("stopped", replace(DEAD, job="7"), lambda: answering(job("7")), "waiting"),
        ("failed", replace(DEAD, job="7"), lambda: answering(job("7", "SPECIAL_EXIT")), "waiting"),
        ("finished", replace(DEAD, job="7"), not_asked, "finished"),
    ],
)
def test_a_state(state: str, owner: Process | None, slurm: Callable[[], Slurm], expected: str, tmp_path: Path) -> None:
    silence(make(tmp_path / "r", state, owner), 9000)
    assert one(tmp_path, slurm()).state == expected


def test_one_that_runs_elsewhere_and_shows_life_runs_whatever_slurm_says(tmp_path: Path) -> None:
    make(tmp_path / "r", "running", replace(OTHER, job="7"))
    row = one(tmp_path, answering())
    assert (row.state, row.node) == ("running", "gpu07")
    silence(tmp_path / "r", 3 * 3600)
    make(tmp_path / "s", "running", OTHER)
    silence(tmp_path / "s", 3 * 3600)
    rows = survey(tmp_path, answering()).rows
    assert [(row.state, row.why) for row in rows] == [
        ("lost", "job 7 is no longer in the queue"),
        ("running?", "no sign of life from gpu07 for 3 h"),
    ]


def test_a_job_that_has_not_begun(tmp_path: Path) -> None:
    submit(tmp_path / "r", "7")
    row = one(tmp_path, answering(job("7", reason="Resources")))
    assert (row.state, row.why, row.step) == ("queued", "job 7: Resources", None)
    assert one(tmp_path, answering(job("7", "RUNNING", nodes="n3"))).state == "starting"
    gone = one(tmp_path, answering())
    assert (gone.state, gone.why) == ("lost", "job 7 is no longer in the queue, and never began")
    found = survey(tmp_path, not_answering())
    assert (found.rows[0].state, found.unknown) == ("queued?", SILENT)


def test_jobs_of_this_machine_are_asked_of_elsewhere(tmp_path: Path) -> None:
    submit(tmp_path / "r", "local-ab", numbers=(1, 2), total=2)
    asked: list[str] = []

    def here(number: str) -> bool:
        asked.append(number)
        return True

    slurm = Slurm(lambda: Queue(unknown="x"), here)
    assert [row.state for row in survey(tmp_path, slurm).rows] == ["queued"] * 2 and set(asked) == {"local-ab"}
    slurm = Slurm(lambda: Queue(unknown="x"), lambda number: False)
    assert [row.state for row in survey(tmp_path, slurm).rows] == ["lost"] * 2
    assert [row.state for row in survey(tmp_path, not_asked()).rows] == ["queued?"] * 2


def test_accounting_tells_how_a_job_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(tmp_path / "a", "7")
    submit(tmp_path / "b", "8")
    told = queue.parse_ended("7|CANCELLED by 0|0:0|None assigned\n8|NODE_FAIL|1:0|n2\n")
    monkeypatch.setattr(queue, "ended", lambda ids: {key: told[key] for key in ids})
    first, second = survey(tmp_path, answering()).rows
    assert first.state == "cancelled"
    assert second.state == "lost" and second.why.endswith(": Slurm says NODE_FAIL on n2, exit code 1:0")


def test_the_last_failure_of_several_attempts(tmp_path: Path) -> None:
    run = make(tmp_path / "r", "stopped")
    attempt(run, "7", 0, kind="gpu-memory", why="tried to allocate 2 GiB", code=1)
    attempt(run, "7", 1, kind="stopped", code=75)
    row = one(tmp_path, answering())
    assert (row.state, row.attempt, row.node) == ("stopped", 2, "n1")
    assert row.why == "attempt 1 of 2: gpu-memory: tried to allocate 2 GiB"
    attempt(run, "7", 2)
    attempt(run, "7", 3, kind="stopped")
    assert one(tmp_path, answering()).why == "attempt 3 of 4: killed, and nothing was noted of its end"


@pytest.mark.parametrize(
    ("kind", "expected"), [("gpu-memory", "failed"), ("cancelled", "cancelled"), ("time-limit", "stopped")]
)
def test_an_end_that_only_the_job_has_seen(kind: str, expected: str, tmp_path: Path) -> None:
    run = make(tmp_path / "r", "running", DEAD)
    attempt(run, "7", kind=kind, why="seen from outside", code=137)
    row = one(tmp_path, answering())
    assert (row.state, "seen from outside" in row.why) == (expected, expected != "stopped")
    # Who has gone on since without a job, and been stopped, has the last word.
    (run / rundir.STATE).write_text(json.dumps({"state": "stopped", "why": "SIGINT", "step": 50, "steps": 100}))
    later = time.time() + 30
    os.utime(run / rundir.STATE, (later, later))
    assert one(tmp_path, answering()).state == "stopped"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (rundir.STATE, "{"),
        (rundir.STATE, "[]"),
        (rundir.STATE, ""),
        (rundir.STATE, '{"state": "odd"}'),
        (rundir.STATE, '{"state": []}'),
        ("jobs/attempts.jsonl", "no json\n"),
        ("jobs/attempts.jsonl", '{"restart": "x"}\n'),
        ("jobs/submitted.jsonl", "[]\n"),
    ],
)
def test_a_broken_file_is_a_row(name: str, text: str, tmp_path: Path) -> None:
    make(tmp_path / "good", "finished")
    run = make(tmp_path / "bad", "stopped")
    (run / "jobs").mkdir()
    (run / name).write_text(text)
    found = {row.name: row for row in survey(tmp_path, not_asked()).rows}
    assert found["good"].state == "finished"
    assert found["bad"].state == "unreadable" and found["bad"].why


def test_figures_that_are_none_are_left_out(tmp_path: Path) -> None:
    run = make(tmp_path / "r", "stopped", step="x", steps=1e400, epoch=True)
    (run / rundir.METRICS).write_text('{"step": 30, "train/loss": null}\n{"step": 40, "tr')
    (run / rundir.TIMING).write_text("\n\n[1]\n\x00")
    row = one(tmp_path, not_asked())
    assert (row.step, row.steps, row.epoch, row.loss, row.speed) == (30, None, None, None, None)


def test_a_folder_without_runs_and_one_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / rundir.CONFIG).write_text("")  # of something else
    assert survey(tmp_path, not_asked()).rows == ()
    with pytest.raises(ConfigError, match="does not exist"):
        survey(tmp_path / "c")


def test_links_are_not_followed_and_closed_folders_not_entered(tmp_path: Path) -> None:
    make(tmp_path / "runs" / "r", "finished")
    make(tmp_path / "runs" / "r" / "checkpoints" / "inner", "finished")
    make(tmp_path / "elsewhere", "finished")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "round").symlink_to(tmp_path / "runs")
    assert [row.name for row in survey(tmp_path / "runs", not_asked()).rows] == ["r"]
    assert one(tmp_path / "runs" / "r", not_asked()).name == "r"


def farm(place: Path, names: list[str], **more: Any) -> None:
    (place / "jobs").mkdir(parents=True)
    lines = [json.dumps({"folder": str(place / name), "words": []}) for name in names]
    (place / "jobs" / "runs-1.jsonl").write_text("\n".join([*lines, ""]))
    numbers = tuple(range(1, len(names) + 1))
    submit(place, "70", numbers=numbers, total=len(names), key="runs-1.jsonl", **more)


def test_a_farm(tmp_path: Path) -> None:
    place = tmp_path / "farm"
    farm(place, ["lr=1,seed=10", "lr=1,seed=2", "lr=2,seed=0", "lr=3,seed=0"])
    attempt(make(place / "lr=1,seed=10", "finished"), "70_1", kind="finished")
    make(place / "lr=1,seed=2", "running", replace(OTHER, job="72"))
    silence(place / "lr=1,seed=2", 9000)
    slurm = answering(";".join([job("70_[3]"), "70_2|72|RUNNING|0:00|1:00|N/A|N/A|n7|n|None"]))
    rows = survey(tmp_path, slurm).rows
    assert [(row.name, row.state) for row in rows] == [
        ("lr=1,seed=2", "running"),
        ("lr=1,seed=10", "finished"),
        ("lr=2,seed=0", "queued"),
        ("lr=3,seed=0", "lost"),
    ]
    assert {row.group for row in rows} == {"farm"} and rows[0].node == "n7"


def test_a_farm_whose_numbers_mean_nothing(tmp_path: Path) -> None:
    submit(tmp_path / "farm", "70", numbers=(3, 4), offset=2, total=9)
    attempt(make(tmp_path / "farm" / "a", "stopped"), "70_1", kind="stopped")
    rows = survey(tmp_path, answering(job("70_2"))).rows
    assert [(row.name, row.state) for row in rows] == [("a", "stopped"), ("run 4 of 9", "queued")]


def manifest(place: Path, share: str, owner: Process, maps: int, seconds: float = 0.5) -> Path:
    path = place / "manifest" / f"{share}-{owner.tag}-0a1b2c3d.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = [{"name": f"{number}.png", "seconds": seconds} for number in range(maps)]
    lines[1:1] = [{"name": "samples/0.1.png", "seconds": seconds, "replicate": 1}]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.write_text(text + '{"name":"torn')
    return path


def test_a_folder_of_maps(tmp_path: Path) -> None:
    place = tmp_path / "maps"
    submit(place, "60", "predict", numbers=(1, 2, 3, 4, 10), total=10)
    submit(place, "61", "verify")
    (place / record.FILE).write_text("{}")
    attempt(place, "60_1", share="1-of-10", kind="finished")
    manifest(place, "1-of-10", OTHER, 30)
    attempt(place, "60_2", share="2-of-10")
    manifest(place, "2-of-10", OTHER, 12, 0.25)
    attempt(place, "60_3", share="3-of-10", kind="host-memory", why="killed by the kernel")
    slurm = answering(";".join([job("60_2", "RUNNING", nodes="n2"), job("60_4"), job("61", reason="Dependency")]))
    rows = survey(tmp_path, slurm).rows
    assert [(row.name, row.state, row.step) for row in rows] == [
        ("1/10", "finished", 30),
        ("2/10", "running", 12),
        ("3/10", "failed", 0),
        ("4/10", "queued", None),
        ("10/10", "lost", None),
        ("verify", "queued", None),
    ]
    assert rows[1].speed == pytest.approx(4) and rows[2].why == "host-memory: killed by the kernel"
    assert {row.group for row in rows} == {"maps"} and all(row.maps for row in rows[:-1])


def test_scorings_are_shown_until_they_are_done(tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(run, "8", "evaluate", key="test")
    submit(run, "9", "evaluate", key="val")
    (run / rundir.CONFIG).write_text("")
    rundir.write_json(run / rundir.STATE, {"state": "finished"})

    def shown_now(queue: str = "") -> list[tuple[str, str]]:
        return [(row.name, row.state) for row in survey(tmp_path, answering(queue)).rows]

    assert shown_now(job("9")) == [("run", "finished"), ("run evaluate 8", "lost"), ("run evaluate 9", "queued")]
    attempt(run, "8", share="evaluate-test", kind="finished")
    attempt(run, "9", share="evaluate-val")
    assert shown_now(job("9", "RUNNING")) == [("run", "finished"), ("run evaluate 9", "running")]
    attempt(run, "9", 1, share="evaluate-val", kind="bug", why="x")
    assert shown_now() == [("run", "finished"), ("run evaluate 9", "failed")]
    submit(run, "10", "evaluate", key="val")  # again, in its place
    assert shown_now(job("10")) == [("run", "finished"), ("run evaluate 10", "queued")]


def test_a_share_says_how_long_it_will_take(tmp_path: Path) -> None:
    place = tmp_path / "maps"
    submit(place, "60", kind="predict", numbers=(1, 2, 3), total=3, pictures=32)
    rundir.write_json(place / "predict.json", {})
    manifest(place, "2-of-3", process.this(), 5)
    attempt(place, "60_2", share="2-of-3")
    found = survey(tmp_path, answering(job("60_2", "RUNNING")))
    first, second, third = found.rows[:3]
    assert (first.steps, second.steps, third.steps) == (11, 11, 10)
    assert second.step == 5 and second.left == pytest.approx(3)
    assert "5/11 maps" in shown(found)


def test_maps_without_a_job(tmp_path: Path) -> None:
    for name, owner in (("here", process.this()), ("gone", DEAD), ("far", OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / record.FILE).write_text("{}")
        path = manifest(tmp_path / name, "1-of-1", owner, 5)
    os.utime(path, (1, 1))
    found = {row.name: (row.state, row.step) for row in survey(tmp_path, not_asked()).rows}
    assert found == {"here": ("running", 5), "gone": ("ended", 5), "far": ("ended", 5)}


def test_two_thousand_trials(tmp_path: Path) -> None:
    template = make(tmp_path / "t", "finished")
    files = {path.name: path.read_bytes() for path in template.iterdir()}
    for number in range(2000):
        trial = tmp_path / "runs" / "search" / f"trial-{number}"
        trial.mkdir(parents=True)
        for name, data in files.items():
            (trial / name).write_bytes(data.replace(b"finished", b"failed") if number % 100 == 7 else data)
    found = survey(tmp_path / "runs", not_asked())
    assert [row.name for row in found.rows] == [f"trial-{number}" for number in range(2000)]
    text = shown(found)
    assert len(text.splitlines()) < 15
    assert "not shown: 1,980 finished, 15 failed; --all shows each" in text
    assert text.splitlines()[-1] == "1,980 finished, 20 failed"
    assert len(shown(found, every=True).splitlines()) > 2000


def shown(found: Survey, width: int = 100, **how: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False).print(table.Shown(found, "runs", **how))
    return out.getvalue()


def rows(*states: standing.State, group: str = "g", **more: Any) -> Survey:
    return Survey(
        tuple(Row(name=f"r{at}", group=group, place=f"/{at}", state=state, **more) for at, state in enumerate(states))
    )


def test_a_table_fits_and_names_keep_their_ends(tmp_path: Path) -> None:
    name = "optim.generator.lr=1e-4," + "x" * 90 + ",seed=12"
    row = Row(
        name=name, group=".", place="/", state="running", epoch=3.25, step=123456, steps=9000000, loss=0.123456,
        speed=12.345, node="node[001-128,200-256]", attempt=3, why="attempt 2 of 3: " + "word " * 40,
    )  # fmt: skip
    lines = shown(Survey((row,))).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert "…" in lines[1] and "seed=12" in lines[1] and "123456/9000000" in lines[1] and "8d 07h" in lines[1]
    assert sum("word" in line for line in lines) > 1  # a reason is there in full


def test_one_run_has_its_whole_path_and_several_a_heading() -> None:
    assert "g/r0  " in shown(rows("finished"))
    assert "\ng  2: 1 finished, 1 queued\n  r0  " in shown(rows("finished", "queued"))
    assert shown(rows()) == "there are no runs in runs\n"


def test_what_is_not_known_is_explained() -> None:
    found = Survey(rows("running?", "queued?").rows, SILENT)
    text = shown(found)
    assert "running?: says that it runs; whether its process lives cannot be seen from here" in text
    assert f"Slurm has not answered ({SILENT}): what is in its queue is not known" in text


def test_a_terminal_that_is_too_low_shows_the_sum() -> None:
    states: list[standing.State] = [*["finished"] * 9, *["queued"] * 30, "running", "failed"]  # type: ignore[list-item]
    text = shown(rows(*states), height=10).splitlines()
    assert len(text) <= 10 and text[-1] == "9 finished, 1 running, 30 queued, 1 failed"
    assert ["r39", "running"] in [line.split() for line in text]
    text = shown(rows(*states), height=4).splitlines()
    assert len(text) == 4 and "more lines" in text[1] and text[-1].startswith("9 finished")


def test_changes() -> None:
    before, after = rows("running", "queued"), rows("finished", "queued", "lost", why="its process is gone")
    assert watching.changes(before, after) == ["g/r0: running -> finished", "g/r2: new -> lost (its process is gone)"]
    assert watching.changes(after, rows("finished")) == ["r1: queued -> gone", "r2: lost -> gone"]


def test_status_from_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "runs" / "r", "finished")
    with pytest.raises(SystemExit) as end:
        main(["status", str(tmp_path / "runs")])
    assert end.value.code == 0 and "1 finished" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["status", str(tmp_path / "nothing")])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"memdist: {tmp_path}/nothing does not exist: name a folder of runs, such as runs, or the folder of one run\n"
    )


def test_watching_without_a_terminal_tells_changes_until_ctrl_c(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(tmp_path / "r", "stopped")
    looks = iter([lambda: None, lambda: (run / rundir.STATE).write_text('{"state": "finished"}'), None])

    def pause(seconds: float) -> None:
        step = next(looks)
        if step is None:
            raise KeyboardInterrupt
        step()

    watching.watch(tmp_path, pause=pause)
    out = capsys.readouterr().out
    assert out.count("stopped -> finished") == 1 and out.splitlines()[2] == ""


def test_watching_ends_with_code_0(tmp_path: Path) -> None:
    make(tmp_path / "r", "stopped")
    child = subprocess.Popen(
        [sys.executable, "-m", "memdist", "status", str(tmp_path), "--watch"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    killer = threading.Timer(30, child.kill)
    killer.start()
    while "1 stopped" not in child.stdout.readline():
        pass
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    killer.cancel()
    assert (child.returncode, errors) == (0, "")


def test_a_large_group_of_which_nothing_is_at_work_is_counts_alone() -> None:
    states: list[standing.State] = ["queued"] * 100
    found = rows(*states, group="maps")
    assert "maps  100: 100 queued" in shown(found) and "not shown: 100 queued" in shown(found)
