"""`memdist submit`: what cannot be is one sentence, and nothing is written; what can be is submitted once, whole, in private."""

import os
from pathlib import Path

import pytest

from memdist import config
from memdist.cluster import book, submit
from memdist.search import space
from tests import fake_slurm
from tests.fake_slurm import Login, login, predict, train


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Login:
    return login(tmp_path, monkeypatch, lambda: capfd.readouterr().err)


TRAIN = "submit train my.yaml --out {tmp}/new --cluster site"
PREDICT = "submit predict {run} {tmp}/pictures --out {tmp}/maps --cluster site"

# Command -> what the sentence says.
CASES = {
    "an unknown cluster": (
        "submit train my.yaml --cluster sit",
        "there is no cluster 'sit': did you mean site? known are cpus, legs, lost, narrow, own, short, site, wrong, local; ",
    ),
    "a way out of the folder": ("submit train my.yaml --cluster ../clusters/site", "there is no cluster '../clusters/"),
    "a wrong profile": (
        "submit train my.yaml --cluster wrong",
        "wrong.yaml: there is no setting 'partiton'; did you mean partition",
    ),
    "a wrong value in a profile": ("submit train my.yaml --cluster wrong", "wrong.yaml: signal_lead = 'soon' cannot"),
    "no such partition": (
        TRAIN.replace("site", "lost"),
        "no partition 'nowhere' on this cluster: there are gpu, cpu, short",
    ),
    "more GPUs than any node has": (TRAIN + " --gpus-per-node 5", "no node of partition gpu has more than 4; ask for"),
    "GPUs where there are none": (
        TRAIN.replace("site", "cpus") + " --gpus-per-node 1",
        "no node of partition cpu has more than 0",
    ),
    "more nodes than there are": (TRAIN + " --nodes 5", "--nodes 5 cannot be: partition gpu has 4; ask for fewer"),
    "no time": (TRAIN + " --time 0h", "--time '0h' cannot be: it is such as 8h"),
    "a time that is none": (TRAIN + " --time soon", "--time 'soon' cannot be"),
    "a time within which jobs are told to leave": (
        TRAIN + " --time 2m",
        "--time 2m cannot be: jobs are told to leave 120",
    ),
    "a time over the profile's limit": (
        TRAIN + " --time 25h",
        "--time 25h is over the limit of the cluster's file, 1d",
    ),
    "a time over the partition's limit": (
        TRAIN.replace("site", "legs") + " --time 3d",
        "--time 3d is over the limit of partition gpu, 2d: give --time 2d",
    ),
    "a folder of this machine's own": (
        "submit train my.yaml --out /tmp/memdist-new --cluster own",
        "the folder /tmp/memdist-new is this machine's own, and compute nodes do not see it",
    ),
    "a folder that is not shared": (
        "submit train my.yaml --out /home/nobody/new --cluster site",
        "the folder /home/nobody/new is not in a folder that compute nodes of site see ({tmp}, by `shared`",
    ),
    "pictures that are not shared": (
        "submit predict {run} /etc --out {tmp}/maps --cluster site",
        "the input /etc is not in a folder that compute nodes of site see",
    ),
    "data that are not shared": (
        TRAIN + " data.images={tmp}/data data.maps=/data/maps",
        "data.maps = /data/maps is not in a folder that compute nodes of site see ({tmp}, by `shared`",
    ),
    "data of many that are not shared": (
        TRAIN + " -m data.fixations=/a.npz,/b.npz",
        "data.fixations = /a.npz is not in",
    ),
    "a cache that is not shared": (TRAIN + " data.cache=/scratch/x", "data.cache = /scratch/x is not in a folder that"),
    "weights that are not shared": (
        TRAIN + " init.from=/runs/x",
        "init.from = /runs/x is not in a folder that compute",
    ),
    "data of scores that are not shared": (
        "submit evaluate {run} data.images=/data/images --cluster site",
        "data.images = /data/images is not in a folder that compute nodes of site see",
    ),
    "a current folder that is not shared": (
        "submit train my.yaml --out {tmp}/data/new --cluster narrow",
        "the current folder {tmp}/home is not in a folder that compute nodes of narrow see",
    ),
    "many runs in no folder": (
        "submit train my.yaml -m seed=1,2 --cluster site",
        "-m makes an array of runs, and there is no --out",
    ),
    "a chain of many runs": (TRAIN + " -m seed=1,2 --legs 2", "and there is --legs, which chains single jobs"),
    "a throttle of one run": (TRAIN + " --at-most 3", "--at-most bounds the runs of an array"),
    "an empty value": (TRAIN + " -m seed=1,", "seed=1, cannot be: a value between commas is empty"),
    "a bad range": (TRAIN + " -m seed=range(5,0)", "seed=range(5,0) stands for 0 values"),
    "a wrong key in one of many": (TRAIN + " -m seeds=1,2", "run 1 of 2: seeds=1"),
    "a wrong value in one of many": (TRAIN + " -m seed=1,x", "run 2 of 2: seed=x"),
    "a wrong key": (TRAIN + " seeds=1", "seeds"),
    "a wrong file": (TRAIN.replace("my.yaml", "bad.yaml"), "epoch"),
    "a file that is not there": (TRAIN.replace("my.yaml", "other.yaml"), "other.yaml"),
    "after a run without jobs": (
        TRAIN + " --after {run}",
        "--after {run}: this run is neither finished nor has it a job that waits or runs; submit it first",
    ),
    "after nothing": (TRAIN + " --after {tmp}/nowhere", "--after {tmp}/nowhere: this run is neither finished nor"),
    "more shares than pictures": (PREDICT + " --shards 6", "--shards 6 cannot be: there are 5 pictures; give at most"),
    "no pictures": ("submit predict {run} eval.steps=3 --out {tmp}/maps --cluster site", "there are only settings"),
    "pictures that are not there": (PREDICT.replace("pictures", "nowhere"), "does not exist"),
    "an empty folder": (PREDICT.replace("pictures", "empty"), "holds no pictures"),
    "a batch that cannot be shared": (
        TRAIN + " --gpus-per-node 3",
        "batch.size = 4 cannot be shared by 3 ranks (1 nodes of 3): make it a multiple, or ask for other --nodes",
    ),
    "a batch of many that cannot be shared": (
        TRAIN + " -m batch.size=4,6 --nodes 4 --gpus-per-node 1",
        "batch.size = 6 cannot be shared by 4 ranks",
    ),
    "several nodes of this machine": (TRAIN.replace("site", "local") + " --nodes 2", "which is this machine"),
    "legs on this machine": (TRAIN.replace("site", "local") + " --legs 2", "where no job runs out of time"),
    "an unknown space": ("submit search quic --cluster site", "there is no space 'quic'"),
    "a search of what no run reports": (
        "submit search quick search.metric=val/x --cluster site --out {tmp}/s",
        "search.metric = 'val/x' is not measured here",
    ),
    "a search of data that are not shared": (
        "submit search quick data.images=/a data.maps=/b --cluster site --out {tmp}/s",
        "data.images = /a is not in a folder that compute nodes of site see",
    ),
    "a search on more nodes than there are": ("submit search quick --cluster site --nodes 5", "partition gpu has 4"),
    "scoring nothing": ("submit evaluate {tmp}/nowhere --cluster site", "{tmp}/nowhere is no run folder"),
    "a new name that is taken": ("cluster init site", "site.yaml is there already: edit it, remove it, or choose"),
    "a new name that is none": ("cluster init a/b", "a cluster cannot be called 'a/b'"),
    "a new name that is this machine": ("cluster init local", "a cluster cannot be called 'local': that is this"),
    "a new one of no partition": ("cluster init new --partition x", "there is no partition 'x' on this cluster"),
    "cancelling nothing": ("cancel {tmp}/nowhere", "{tmp}/nowhere is no folder"),
    "cancelling what was never submitted": ("cancel {run}", "no job was ever submitted for {run}"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_is_a_sentence(name: str, place: Login) -> None:
    command, says = CASES[name]
    words = {"tmp": place.tmp, "run": place.run}
    sentence = place.refused(*[word.format(**words) for word in command.split(" ")])
    assert says.format(**words) in sentence
    wrong = "wrong" in name and "profile" in name
    assert len(sentence.strip().splitlines()) == (2 if wrong else 1), sentence
    assert not place.slurm.calls("sbatch")


def test_sbatch_refuses_in_its_own_words(place: Login) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n"
    place.slurm.refuse(101, words)
    sentence = place.refused(*train(place))
    assert sentence == (
        "memdist: sbatch refuses: Batch job submission failed: Invalid account or account/partition combination specified; "
        "nothing was submitted\n"
    )
    assert place.slurm.calls("scancel") == []


def test_sbatch_answers_what_is_no_number(place: Login) -> None:
    place.slurm.program("sbatch", "echo 'good morning'")
    assert "sbatch answered what is no number of a job" in place.refused(*train(place))


def test_sbatch_hangs(place: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "PATIENCE", 1)
    place.slurm.program("sbatch", "sleep 60")
    assert "Slurm does not answer: sbatch said nothing for 1 s; see with `squeue --me`" in place.refused(*train(place))


def test_slurm_is_not_there(place: Login, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_slurm.without(monkeypatch, tmp_path / "empty")
    for words in (train(place), predict(place), ("cluster", "init", "new"), ("submit", "evaluate", place.run)):
        more = ("--cluster", "site") if words[1] == "evaluate" else ()
        assert "Slurm is not there: this machine has no sinfo" in place.refused(*words, *more)


@pytest.mark.parametrize("body", ["sleep 60", "exit 1", "head -c 500 /dev/urandom", "echo"])
def test_slurm_goes_wrong(body: str, place: Login) -> None:
    place.slurm.program("sinfo", body)
    place.refused(*train(place))
    place.refused("cluster", "init", "new")


def test_a_run_is_submitted(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    assert place.memdist(*train(place, "seed=7", "--nodes", 2, "--gpus-per-node", 2, "--time", "90m")) == 0
    out = capfd.readouterr().out
    assert out.startswith(f"job 101 on site: train in {place.tmp}/new\nsee: memdist status ../new\n")
    (script,) = place.slurm.scripts().values()
    assert {"#SBATCH --partition=gpu", "#SBATCH --nodes=2", "#SBATCH --gpus-per-node=2"} <= set(script.splitlines())
    (job,) = book.submitted(place.tmp / "new")
    assert (job.id, job.kind, job.cluster, job.numbers) == ("101", "train", "site", ())
    assert (place.tmp / "new" / "jobs" / "101.sbatch").read_text() == script
    # What is trained are the settings of now.
    (settings,) = (place.tmp / "new" / "jobs").glob("train-*.yaml")
    assert str(settings) in script and config.read(settings)["seed"] == 7


def test_a_search_is_submitted(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    command = ("submit", "search", "quick", "search.method=asha", "--cluster", "site", "--out", place.tmp / "s")
    assert place.memdist(*command, "--nodes", 3) == 0
    assert f"search in {place.tmp}/s" in capfd.readouterr().out
    (script,) = place.slurm.scripts().values()
    # All GPUs of each node, for one task.
    wanted = {"--nodes=3", "--gpus-per-node=4", "--ntasks-per-node=1"}
    assert {f"#SBATCH {option}" for option in wanted} <= set(script.splitlines())
    (job,) = book.submitted(place.tmp / "s")
    assert (job.id, job.kind) == ("101", "search")
    # What is searched is the space of now, with its base.
    (file,) = (place.tmp / "s" / "jobs").glob("space-*.yaml")
    assert str(file) in script and space.read(str(file)).fingerprint == space.read("quick").fingerprint
    place.slurm.queued("101")
    assert place.memdist(*command) == 0
    assert "queued already, as job 101" in capfd.readouterr().out


def test_a_search_in_the_folder_of_another_is_not_submitted(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    (place.tmp / "s").mkdir()
    (place.tmp / "s" / "search.json").write_text('{"format": 1, "metric": "val/l2"}')
    assert place.memdist("submit", "search", "quick", "--cluster", "site", "--out", place.tmp / "s") == 2
    assert "was begun with metric = val/l2" in capfd.readouterr().err
    assert not place.slurm.scripts() and not (place.tmp / "s" / "jobs").exists()


def test_what_cannot_requeue_itself_is_told_what_it_can(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    told = "jobs of this cluster cannot requeue themselves: "
    again = "when they have ended, submit what is left\n"
    for command, says in {
        TRAIN: "with --legs N so many follow one another\n",
        TRAIN + " -m seed=1,2": again,
        PREDICT + " --shards 2": again,
        "submit evaluate {run} --cluster site": again,
    }.items():
        words = [word.format(tmp=place.tmp, run=place.run) for word in command.replace("site", "legs").split(" ")]
        assert place.memdist(*words, "--dry-run") == 0
        assert capfd.readouterr().out.count(told + says) == 1
    assert place.memdist(*train(place, "--cluster", "legs", "--legs", 2, "--dry-run")) == 0
    assert told not in capfd.readouterr().out


def test_a_verification_keeps_to_the_limit_of_its_own_partition(
    place: Login, capfd: pytest.CaptureFixture[str]
) -> None:
    assert place.memdist(*predict(place, "--cluster", "short", "--time", "2h")) == 0
    shares, proof = place.slurm.scripts().values()
    assert "--partition=gpu\n" in shares and "--time=02:00:00\n" in shares
    assert "--partition=short\n" in proof and "--time=00:30:00\n" in proof
    assert "the job that verifies has 30m, the limit of partition short\n" in capfd.readouterr().out


def test_the_environment_does_not_overrule_a_job(
    place: Login, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with open(place.tmp / "config" / "memdist" / "clusters" / "site.yaml", "a") as file:
        file.write("qos: high\noptions: [--core-spec=2]\n")
    for name in ("TIMELIMIT", "OUTPUT", "WAIT", "QOS", "CORE_SPEC", "ACCOUNT", "RESERVATION", "EXPORT"):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    place.slurm.program("sbatch", f'env | grep "^SBATCH_" | sort >"{place.tmp}/seen"; echo "Submitted batch job 5"')
    assert place.memdist(*train(place)) == 0
    assert (place.tmp / "seen").read_text().split() == ["SBATCH_ACCOUNT=1", "SBATCH_EXPORT=1", "SBATCH_RESERVATION=1"]
    names = "SBATCH_CORE_SPEC, SBATCH_OUTPUT, SBATCH_QOS, SBATCH_TIMELIMIT, SBATCH_WAIT"
    assert f"left aside, as the job says it: {names} of the environment" in capfd.readouterr().out


def test_no_name_rules_the_terminal(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    assert place.memdist(*train(place, out="a\n\x1b[2Jb")) == 0
    out = capfd.readouterr().out
    assert out == (f"job 101 on site: train in {place.tmp}/a\\n\\x1b[2Jb\nsee: memdist status $'../a\\n\\033[2Jb'\n")


def test_a_dry_run_touches_nothing(place: Login, capfd: pytest.CaptureFixture[str]) -> None:
    before = place.files()
    assert (
        place.memdist(*train(place, "batch.size=8", "--dry-run", "--time", "2h", "--gpus-per-node", 4, "--nodes", 2))
        == 0
    )
    out = capfd.readouterr().out
    assert out.startswith("#!/bin/bash\n") and "GPU-hours: 16.0 at most" in out and "nothing was submitted" in out
    assert place.memdist(*predict(place, "--dry-run", "--shards", 5, "--at-most", 2)) == 0
    out = capfd.readouterr().out
    assert "#SBATCH --array=1-5%2" in out and "array: 5 of 5, numbers 1-5 as indices 1 to 5, 2 at once" in out
    assert place.memdist(*train(place, "--dry-run", "--legs", 3)) == 0
    assert "(3 such jobs, one after the other)" in capfd.readouterr().out
    assert place.files() == before and place.slurm.calls("sbatch") == []


def test_a_dry_run_needs_no_slurm(
    place: Login, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_slurm.without(monkeypatch, tmp_path / "empty")
    assert place.memdist(*train(place, "--dry-run")) == 0
    assert "limits are not checked: Slurm is not there" in capfd.readouterr().out
    assert os.environ["PATH"] == str(tmp_path / "empty")
