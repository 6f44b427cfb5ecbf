"""`memdist submit` given twice, refused in the middle, read by others."""

import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memdist import rundir
from memdist.cluster import book, make
from memdist.cluster.book import Attempt
from memdist.errors import CheckpointError
from memdist.train import restore
from tests.fake_slurm import Login, login, predict, train


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Login:
    return login(tmp_path, monkeypatch, lambda: capfd.readouterr().err)


def arrays(place: Login) -> dict[int, str]:
    """The indices of each script that was submitted."""
    found = {number: re.search(r"--array=(\S+)", script) for number, script in place.slurm.scripts().items()}
    return {number: match[1] if match else "" for number, match in found.items()}


def test_a_run_is_submitted_once(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    assert place.memdist(*train(place)) == 0
    place.slurm.queued("101", state="RUNNING")
    capfd.readouterr()
    assert place.memdist(*train(place)) == 0
    assert capfd.readouterr().out == f"{place.tmp}/new is queued already, as job 101\n"
    place.slurm.queued()
    assert place.memdist(*train(place)) == 0
    assert list(place.slurm.scripts()) == [101, 102]
    run = place.tmp / "new"
    rundir.write_json(run / rundir.STATE, {"state": "finished"})
    (run / rundir.CONFIG).write_text(next((run / "jobs").glob("train-*.yaml")).read_text())
    capfd.readouterr()
    assert place.memdist(*train(place)) == 0
    assert capfd.readouterr().out == f"{run} is finished: there is nothing to submit\n"
    assert place.memdist(*train(place, "epochs=2")) == 0  # which is more than was trained
    assert list(place.slurm.scripts()) == [101, 102, 103]


def test_a_number_of_another_cluster_is_another_job(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = train(place, "-m", "seed=1,2", out="sweep")
    assert place.memdist(*train(place)) == 0 and place.memdist(*sweep) == 0
    place.slurm.queued("101", "102_1", "102_2", names="of something else")
    assert place.memdist("cancel", place.tmp / "new") == 0
    assert "no job of it waits or runs" in capfd.readouterr().out and not place.slurm.calls("scancel")
    assert place.memdist("status", place.tmp / "new") == 0
    assert "lost" in capfd.readouterr().out
    assert place.memdist(*train(place)) == 0 and place.memdist(*sweep) == 0
    assert list(place.slurm.scripts()) == [101, 102, 103, 104]


def test_runs_of_a_sweep_are_submitted_once(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = train(place, "-m", "seed=range(0,6)", "--at-most", 2, out="sweep")
    assert place.memdist(*sweep) == 0
    assert arrays(place) == {101: "1-6%2"}
    run = place.tmp / "sweep" / "seed=3"
    (run / rundir.CONFIG).write_text(next((run / "jobs").glob("train-*.yaml")).read_text())
    rundir.write_json(run / rundir.STATE, {"state": "finished"})
    place.slurm.queued("101_2", "101_3", state="RUNNING")
    capfd.readouterr()
    assert place.memdist(*sweep) == 0
    out = capfd.readouterr().out
    assert "1 of 6 runs are finished" in out and "2 of 6 runs are queued already" in out
    assert arrays(place) == {101: "1-6%2", 102: "1,5-6%2"}
    # Another sweep with some of the same runs.
    place.slurm.queued("102_5", "101_3")
    assert place.memdist(*train(place, "-m", "seed=2,4,9", out="sweep")) == 0
    assert arrays(place)[103] == "3"
    listings = sorted((place.tmp / "sweep" / "jobs").glob("runs-*.jsonl"))
    names = [
        [json.loads(line)["folder"].rpartition("=")[2] for line in file.read_text().splitlines()] for file in listings
    ]
    assert sorted(names) == [["0", "1", "2", "3", "4", "5"], ["2", "4", "9"]]


def finish(maps: Path, number: int, of: int, job: str, pictures: list[Path]) -> None:
    """As if a share had been done."""
    file = book.attempts_file(maps, f"{number}-of-{of}")
    done: dict[str, Any] = {"job": job, "restart": 0, "nodes": "", "began": 1.0, "since": 0}
    book.ended(file, Attempt(**done, kind="finished", code=0))
    for picture in pictures:
        (maps / picture.name).write_bytes(b"")


def test_shares_are_submitted_once(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    shares = predict(place, "--shards", 5)
    assert place.memdist(*shares) == 0
    assert arrays(place) == {101: "1-5", 102: ""}
    assert "#SBATCH --dependency=afterany:101\n" in place.slurm.scripts()[102]
    assert "    --verify\n" in place.slurm.scripts()[102]
    maps = place.tmp / "maps"
    pictures = sorted((place.tmp / "pictures").iterdir())
    finish(maps, 1, 5, "101_1", [])  # its map is not there
    finish(maps, 2, 5, "101_2", pictures)
    place.slurm.queued("101_4")
    for picture in pictures[:1]:
        (maps / picture.name).unlink()
    capfd.readouterr()
    assert place.memdist(*shares) == 0
    out = capfd.readouterr().out
    assert "1 of 5 shares are done" in out and "1 of 5 shares are queued already" in out
    assert arrays(place)[103] == "1,3,5"
    # Other shares are other work.
    assert place.memdist(*predict(place, "--shards", 2)) == 0
    assert arrays(place)[105] == "1-2"


def test_long_arrays_are_cut(place: Login) -> None:
    (place.slurm.folder / "scontrol.txt").write_text("MaxArraySize = 3\n")
    assert place.memdist(*predict(place, "--shards", 5)) == 0
    assert arrays(place) == {101: "1-2", 102: "1-2", 103: "1", 104: ""}
    scripts = place.slurm.scripts()
    assert ["--offset=" in scripts[number] for number in scripts] == [True, True, True, False]
    assert "--offset=4" in scripts[103] and "afterany:101:102:103" in scripts[104]
    assert [(job.offset, job.numbers) for job in book.submitted(place.tmp / "maps")] == [
        *((0, (1, 2)), (2, (3, 4)), (4, (5,)), (0, ())),
    ]


def test_a_chain(place: Login) -> None:
    assert place.memdist(*train(place, "--legs", 3)) == 0
    scripts = place.slurm.scripts()
    assert len(scripts) == 3 and len(set(scripts.values())) == 1
    assert "#SBATCH --dependency=singleton" in scripts[101] and "--again=chain" in scripts[101]


def test_after_another_run(place: Login) -> None:
    assert place.memdist(*train(place)) == 0
    place.slurm.queued("101", state="RUNNING")
    assert place.memdist(*train(place, "--after", place.tmp / "new", out="next")) == 0
    script = place.slurm.scripts()[102]
    assert "#SBATCH --dependency=afterok:101\n#SBATCH --kill-on-invalid-dep=yes\n" in script
    place.slurm.queued()
    rundir.write_json(place.tmp / "new" / rundir.STATE, {"state": "finished"})
    assert place.memdist(*train(place, "--after", place.tmp / "new", out="third")) == 0
    assert "--dependency" not in place.slurm.scripts()[103]


def test_what_is_refused_in_the_middle_is_taken_back(place: Login) -> None:
    place.slurm.refuse(103, "sbatch: error: QOSMaxSubmitJobPerUserLimit\n")
    sentence = place.refused(*train(place, "--legs", 4))
    assert "sbatch refuses: QOSMaxSubmitJobPerUserLimit" in sentence and len(sentence.splitlines()) == 1
    assert place.slurm.calls("scancel") == ["--quiet 101 102"] and len(place.slurm.calls("sbatch")) == 3
    # A verification that is refused takes its array back.
    place.slurm.refuse(105, "sbatch: error: no\n")
    place.refused(*predict(place, "--shards", 2))
    assert place.slurm.calls("scancel")[1:] == ["--quiet 104"]
    assert place.memdist(*train(place)) == 0


def test_jobs_that_cannot_be_taken_back_are_named(place: Login) -> None:
    place.slurm.refuse(102, "sbatch: error: no\n")
    (place.slurm.folder / "refuse-scancel").write_text("scancel: error: Connection refused\n")
    assert place.memdist(*train(place, "--legs", 2)) == 2
    sentence = place.err()
    assert "sbatch refuses: no" in sentence and "job 101, submitted before, could not be taken back" in sentence
    assert list((place.tmp / "new" / "jobs").glob("train-*.yaml"))  # the job that stands reads it


def test_what_was_there_before_stays_when_sbatch_refuses(place: Login) -> None:
    assert place.memdist(*train(place)) == 0
    place.slurm.refuse(102, "sbatch: error: no\n")
    place.refused(*train(place))
    place.slurm.refuse(103, "sbatch: error: no\n")
    place.refused(*train(place, "seed=9"))


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_what_is_written_is_private_and_has_no_secret(
    mask: int,
    place: Login,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    secret = "s3cr3t-" + "x" * 20
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "SLURM_JWT"):
        monkeypatch.setenv(name, secret)
    before = place.files()
    old = os.umask(mask)
    try:
        assert place.memdist(*train(place)) == 0
        assert place.memdist(*train(place, "-m", "seed=1,2", out="sweep")) == 0
        assert place.memdist(*predict(place, "--shards", 2)) == 0
        assert place.memdist("submit", "evaluate", place.run, "--cluster", "site") == 0
    finally:
        os.umask(old)
    printed = capfd.readouterr()
    assert secret not in printed.out + printed.err
    written = [place.tmp / name for name in sorted(place.files() - before)]
    assert len(written) > 15
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert path.is_dir() or secret.encode() not in path.read_bytes()
    assert not any(secret in script for script in place.slurm.scripts().values())


def test_cancelling(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    assert place.memdist(*train(place)) == 0
    place.slurm.queued("101")
    assert place.memdist("cancel", place.tmp / "new") == 0
    assert place.slurm.calls("scancel") == ["--quiet 101"] and book.cancelled(place.tmp / "new", "101")
    assert "cancelled: job 101 of " in capfd.readouterr().out
    # It may still be shown while it ends, and is no reason not to submit again.
    assert place.memdist(*train(place)) == 0
    assert list(place.slurm.scripts()) == [101, 102]
    place.slurm.queued("101", "102")
    # Where Slurm has not heard of it, it can be said again.
    (place.slurm.folder / "refuse-scancel").write_text("scancel: error: Connection refused\n")
    assert place.memdist("cancel", place.tmp / "new") == 2
    (place.slurm.folder / "refuse-scancel").unlink()
    assert place.memdist("cancel", place.tmp / "new") == 0
    assert place.slurm.calls("scancel")[-1] == "--quiet 101 102"


def test_a_queue_that_is_not_known_is_not_taken_for_empty(place: Login) -> None:
    assert place.memdist(*train(place)) == 0
    assert place.memdist(*train(place, "-m", "seed=1,2", out="sweep")) == 0
    place.slurm.program("squeue", "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1")
    for words in (train(place), train(place, "-m", "seed=1,2", out="sweep"), ("cancel", place.tmp / "new")):
        assert "waits or runs is not known, as squeue failed: slurm_load_jobs error: " in place.refused(*words)


def test_elements_that_were_cancelled_are_submitted_again(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = train(place, "-m", "seed=range(0,3)", out="sweep")
    assert place.memdist(*sweep) == 0
    place.slurm.queued("101_1", "101_2", "101_3", state="RUNNING")
    run = place.tmp / "sweep" / "seed=1"
    assert place.memdist(*train(place, "--after", run, out="next")) == 0
    assert "afterok:101_2\n" in place.slurm.scripts()[102]
    assert place.memdist("cancel", run) == 0
    assert place.slurm.calls("scancel") == ["--quiet 101_2"]
    assert place.memdist(*sweep) == 0
    assert arrays(place)[103] == "2"
    place.slurm.queued()
    capfd.readouterr()
    assert place.memdist("cancel", run) == 0
    assert "no job of it waits or runs" in capfd.readouterr().out


def test_a_folder_keeps_its_settings(place: Login) -> None:
    assert place.memdist(*train(place)) == 0
    assert place.memdist(*train(place, "-m", "seed=1,2", out="sweep")) == 0
    place.slurm.queued("101", "102_1")
    for words in (train(place, "seed=9"), train(place, "-m", "seed=1,2", "batch.size=2", out="sweep")):
        assert "is queued already, with other settings: cancel it first" in place.refused(*words)
    place.slurm.queued()
    run = place.tmp / "new"
    (run / rundir.CONFIG).write_text(next((run / "jobs").glob("train-*.yaml")).read_text())
    rundir.write_json(run / rundir.STATE, {"state": "finished"})
    assert f"seed = 9 differs from the 0 that {run} was started with" in place.refused(*train(place, "seed=9"))


def test_a_verification_waits_for_all_shares_and_is_not_forgotten(place: Login) -> None:
    shares = predict(place, "--shards", 5)
    assert place.memdist(*shares) == 0
    place.slurm.queued("101_4", "102")
    assert place.memdist(*shares) == 0
    assert "#SBATCH --dependency=afterany:103:101\n" in place.slurm.scripts()[104]
    place.slurm.queued()
    for number in range(1, 6):
        job = "101" if number == 4 else "103"
        finish(place.tmp / "maps", number, 5, f"{job}_{number}", sorted((place.tmp / "pictures").iterdir()))
    assert place.memdist(*shares) == 0
    assert list(place.slurm.scripts())[4:] == [105] and "    --verify\n" in place.slurm.scripts()[105]
    verified = Attempt(job="105", restart=0, nodes="", began=1.0, since=0, kind="finished", code=0)
    book.ended(book.attempts_file(place.tmp / "maps", "verify"), verified)
    assert place.memdist(*shares) == 0
    assert len(place.slurm.scripts()) == 5
    # What only was interrupted has found nothing wrong.
    book.ended(book.attempts_file(place.tmp / "maps", "verify"), replace(verified, restart=1, kind="stopped"))
    assert place.memdist(*shares) == 0
    assert len(place.slurm.scripts()) == 5


def test_a_throttle_holds_for_what_was_cut(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    (place.slurm.folder / "scontrol.txt").write_text("MaxArraySize = 3\n")
    shares = predict(place, "--shards", 5, "--at-most", 2)
    assert place.memdist(*shares, "--dry-run") == 0
    assert "--dependency=afterany:<job 1>:<job 2>:<job 3>\n" in capfd.readouterr().out
    assert place.memdist(*shares) == 0
    scripts = place.slurm.scripts()
    assert "--dependency" not in scripts[101]
    assert "--dependency=afterany:101\n" in scripts[102] and "--dependency=afterany:101:102\n" in scripts[103]


def test_what_is_submitted_at_the_same_time_is_not_submitted_twice(
    place: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = make.submit
    job = book.Submitted(id="55", kind="train", cluster="site", name="memdist")

    def later(*words: Any) -> list[str]:
        book.note(place.tmp / "new", job)
        return do(*words)

    monkeypatch.setattr(make, "submit", later)
    assert place.memdist(*train(place)) == 2
    assert "somebody else has just submitted jobs of" in place.err() and not place.slurm.scripts()


def test_jobs_that_cannot_be_written_down_are_taken_back(place: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise CheckpointError("no room")

    monkeypatch.setattr(book, "note", full)
    assert "no room" in place.refused(*train(place, "--legs", 2))
    assert place.slurm.calls("scancel") == ["--quiet 101 102"]


def test_a_scoring_is_told_from_others(
    place: Login, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    score = ("submit", "evaluate", place.run, "--cluster", "site")
    assert place.memdist(*score) == 0
    place.slurm.queued("101")
    assert place.memdist(*score, "--split", "val") == 0
    assert list(place.slurm.scripts()) == [101, 102]
    capfd.readouterr()
    assert place.memdist(*score) == 0
    assert "is queued already to be scored so, as job 101" in capfd.readouterr().out
    place.slurm.queued()
    (said, _) = book.submitted(place.run)
    done = Attempt(job="101", restart=0, nodes="", began=1.0, since=0, ended=2.0, kind="finished", code=0)
    book.ended(book.attempts_file(place.run, f"evaluate-{said.key}"), done)
    record = {"checkpoint": 5, "choice": "best", "ema": False, "sampling": None}
    monkeypatch.setattr(restore, "chosen_step", lambda *_: 5)
    for scores in ({}, {"val": record}, {"test": record | {"checkpoint": 4}}, {"test": record | {"choice": "last"}}):
        rundir.write_json(place.run / rundir.SCORES, scores)
        assert place.memdist(*score, "--dry-run") == 0
        assert "nothing was submitted" in capfd.readouterr().out
    rundir.write_json(place.run / rundir.SCORES, {"test": record})
    assert place.memdist(*score) == 0
    assert capfd.readouterr().out == f"{place.run} is scored so already: there is nothing to submit\n"
    book.note(place.run, book.Submitted(id="103", kind="train", cluster="site", name="memdist"))
    place.slurm.queued("103")
    for other in ("--grid", "--split=val", "device=cpu", f"--after={place.run}"):
        assert place.memdist(*score, other, "--dry-run") == 0
        assert "nothing was submitted" in capfd.readouterr().out


def test_a_number_that_is_given_again_is_another_job(tmp_path: Path) -> None:
    job = book.Submitted(id="7", kind="train", cluster="site", name="memdist", at=1.0)
    book.note(tmp_path, job)
    book.cancel(tmp_path, "7")
    assert book.cancelled(tmp_path, "7")
    book.note(tmp_path, replace(job, at=2.0**40))  # of a cluster that was made anew
    assert not book.cancelled(tmp_path, "7")
