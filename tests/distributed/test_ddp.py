"""Two real processes: the same losses as one, stops that all agree on, running statistics that are everybody's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memdist import rundir
from memdist.train import checkpoint
from tests import tiny
from tests.distributed import two_ranks
from tests.distributed.two_ranks import WRONG

ROOT = Path(__file__).parents[2]
# Dropout and batch norm depend on the micro-batch and are exempt.
EXACT = [name for name in tiny.VARIANTS if "batch" not in name and "dropout" not in name]

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that two ranks do, in one job: starting two processes costs more than all of it."""
    folder = tmp_path_factory.mktemp("job")
    tiny.data(folder / "data")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MEMDIST_TEST_FP16_ON_CPU": "1"}
    environment["ACCELERATE_DYNAMO_BACKEND"] = (
        "EAGER"  # of a configuration file of Accelerate's, which decides on nothing here
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.distributed.two_ranks", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


def losses(out: Path, norms: bool = False) -> list[dict[str, float]]:
    """Lines of training losses; the norms of gradients and weights, or all else."""
    lines = [
        line for line in rundir.read_lines(out / rundir.METRICS) if "val/l1" not in line and "rollback" not in line
    ]
    return [{name: value for name, value in line.items() if ("_norm/" in name) == norms} for line in lines]


@pytest.mark.parametrize("variant", EXACT)
def test_two_ranks_are_one(variant: str, job: Path) -> None:
    two, one = losses(job / "two" / variant), losses(job / "one" / variant)
    assert len(two) == len(one) == 10  # 20 steps, a line each second one
    for a, b in zip(two, one, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-7), variant
    # Adam makes steps of the rounding in gradients that are 0 by right, such as a bias's before a normalisation.
    for a, b in zip(*(losses(job / ranks / variant, norms=True) for ranks in ("two", "one")), strict=True):
        assert len(a) > 0 and a == pytest.approx(b, rel=1e-3), variant


@pytest.mark.parametrize("variant", EXACT)
def test_validation_is_shared_and_whole(variant: str, job: Path) -> None:
    two, one = (
        [line for line in rundir.read_lines(job / name / variant / rundir.METRICS) if "val/l1" in line]
        for name in ("two", "one")
    )
    assert len(two) == len(one) > 0
    for a, b in zip(two, one, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4, nan_ok=True), variant


@pytest.mark.parametrize("variant", ["unet batch prior", "pix2pix", "palette"])
def test_a_stop_that_one_rank_hears_of_is_everybodys(variant: str, job: Path) -> None:
    told = [json.loads((job / f"stopped-{variant}-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0]["code"] == 75
    assert told[0]["step"] in (8, 9)  # heard of after step 7, one step late


@pytest.mark.parametrize("variant", ["unet batch prior", "pix2pix", "palette"])
def test_what_was_stopped_ends_as_if_it_had_not_been(variant: str, job: Path) -> None:
    whole, stopped = ((job / name / variant / rundir.METRICS).read_bytes() for name in ("two", "resumed"))
    assert whole == stopped


@pytest.mark.parametrize("variant", WRONG)
def test_two_ranks_go_back_alike(variant: str, job: Path) -> None:
    told = rundir.read_lines(job / "wrong" / variant / rundir.METRICS)
    records = [line for line in told if "rollback" in line]
    assert [(line["rollback"], line["step"], line["rate"]) for line in records] == [(1, 5, 0.5), (2, 5, 0.25)]
    assert all("is nan at step 7" in line["reason"] for line in records)
    # Killed and resumed, on two ranks, it is the same run.
    last = Path(rundir.CHECKPOINTS, f"{14:010d}")
    for name in (rundir.METRICS, last / "nets.safetensors", last / "optim.safetensors"):
        whole, killed = ((job / where / variant / name).read_bytes() for where in ("wrong", "wrong-killed"))
        assert whole == killed, name
    # On one rank, or gone on with on one, it is the same but for rounding.
    for where in ("wrong-alone", "wrong-moved"):
        other = rundir.read_lines(job / where / variant / rundir.METRICS)
        assert [line for line in other if "rollback" in line] == records
        for a, b in zip(losses(job / "wrong" / variant), losses(job / where / variant), strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6), where


def test_batch_statistics_are_everybodys(job: Path) -> None:
    told = [json.loads((job / f"statistics-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert {name.split(".")[0] for name in told[0]} == {"generator", "discriminator", "average generator"}


def test_micro_batches_do_not_change_the_losses(job: Path) -> None:
    for variant in EXACT:
        for a, b in zip(losses(job / "micro" / variant), losses(job / "one" / variant), strict=True):
            # A picture alone has none beside it to differ from.
            b = {name: value for name, value in b.items() if "spread" not in name}
            assert a == pytest.approx(b, rel=1e-5, abs=1e-7), variant


def test_an_overflow_at_one_rank_is_skipped_by_both(job: Path) -> None:
    told = [json.loads((job / f"overflow-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0] == {"taken": [1.0, 0.0, 1.0], "moved": [True, False, True]}


def test_a_failure_of_the_main_rank_is_everybodys(job: Path) -> None:
    told = [json.loads((job / f"failure-{rank}.json").read_text()) for rank in (0, 1)]
    words = [["DataError", "no room"], ["KeyboardInterrupt", ""], ["FileNotFoundError", "[Errno 2] no: 'a'"]]
    for rank, odd in enumerate((["Unsendable", "odd"], ["RuntimeError", "Unsendable: odd"])):
        assert told[rank] == [[*error, True] for error in (*words[:2], odd, words[2])]


def test_a_rank_that_sees_the_folder_late_goes_with_the_others(job: Path) -> None:
    first, second = (json.loads((job / f"blind-{rank}.json").read_text()) for rank in (0, 1))
    assert [code for code, _ in first] == [code for code, _ in second] == [0, 0, 2, 2, 2, 2, 2, 2, 2]
    says = ["seed = 1 differs", "data.split_seed = 1 differs", "is being trained by", "has lost all its checkpoints"]
    says += ["holds other files and is no run folder", "has diverged: ", "has diverged: "]
    for (_, said), words in zip(first[2:], says, strict=True):
        assert words in said and said.count("\n") == 1
    # What all have met is told once.
    assert [said for _, said in second] == [""] * 9
    assert checkpoint.steps(job / "blind")[-1] == rundir.read_lines(job / "blind" / rundir.METRICS)[-1]["step"] == 14


def test_two_ranks_score_as_one(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job / "two" / "palette", tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / rundir.SAMPLES)
    two_ranks.score(tmp_path / "one", job)
    two, one = (rundir.read_json(run / rundir.SCORES) for run in (job / "two" / "palette", tmp_path / "one"))
    assert [two[split]["distribution"]["kind"] for split in ("train", "val", "test")] == ["fid", "kid", "kid"]
    for split in ("train", "val", "test"):
        for name in ("nss", "auc-judd", "auc-borji", "sauc"):
            assert two[split]["metrics"][name]["mean"] == pytest.approx(one[split]["metrics"][name]["mean"], abs=1e-2)
        assert two[split]["fixations"] == one[split]["fixations"]
        ours, theirs = two[split]["distribution"], one[split]["distribution"]
        for name, figure in theirs["trivial"].items():
            assert ours["trivial"][name]["mean"] == pytest.approx(figure["mean"], rel=1e-6, abs=1e-9)
        assert ours["model"]["mean"] == pytest.approx(theirs["model"]["mean"], abs=1e-3)
    for split in ("val", "test"):
        assert two[split]["metrics"]["l1"]["mean"] == pytest.approx(one[split]["metrics"]["l1"]["mean"], rel=1e-4)
        assert two[split]["trivial"]["nearest"] == one[split]["trivial"]["nearest"]
        # Whichever rank saw a picture, it has its place among all.
        samples = [
            {p.name for p in (run / rundir.SAMPLES / split).iterdir()}
            for run in (job / "two" / "palette", tmp_path / "one")
        ]
        assert samples[0] == samples[1] and len(samples[0]) == 12


def test_both_ranks_pass_over_a_torn_checkpoint(job: Path) -> None:
    first, second = (json.loads((job / f"torn-{rank}.json").read_text()) for rank in (0, 1))
    assert first["last"] == second["last"] > first["step"] == second["step"] > 0
    assert len(first["said"]) == 1 and f"goes on from step {first['step']}" in first["said"][0]
    assert second["said"] == []
