"""The cluster that the other tests of this folder count on does what Slurm does."""

import os
import re
from pathlib import Path

import pytest

from tests.slurm.cluster import DEVCLUSTER, Cluster

pytestmark = pytest.mark.slow

# A job that notes each start and each signal; a signal makes it ask for another start and end.
NOTES = """
note() { echo "$1 ${SLURM_RESTART_COUNT:-0} $SLURMD_NODENAME" >>notes; }
for name in TERM USR2; do
    trap "note $name; trap '' TERM; scontrol requeue $SLURM_JOB_ID; exit 0" "$name"
done
note start
[[ ${SLURM_RESTART_COUNT:-0} == 0 ]] || exit 0
sleep 60 & wait
"""
# The same as a task of a step.
STEP = f"cat >task <<'END'\n{NOTES}END\nsrun --nodes=1 --ntasks=1 bash task\n"


def processes(folder: Path) -> list[str]:
    """What runs with that folder in its command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(words.replace(b"\0", b" ").decode(errors="replace")[:200])
    return found


def notes(folder: Path) -> list[str]:
    file = folder / "notes"
    return file.read_text().splitlines() if file.exists() else []


def test_what_runs_is_told(cluster: Cluster) -> None:
    told = cluster.run(DEVCLUSTER, "status")
    assert re.findall(r"^(node\d) (\w+) 4 4000 gpu:2 debug", told, re.M) == [(f"node{n}", "idle") for n in (1, 2, 3, 4)]
    assert {"slurmctld", "munged"} < set(re.findall(r"^(\w+) \d+ \d+ kB$", told, re.M))
    exported = cluster.run(DEVCLUSTER, "env")
    assert exported == f"export SLURM_CONF={cluster.folder}/etc/slurm.conf\nexport MASTER_ADDR=127.0.0.1\n"


def test_every_socket_is_of_this_machine_alone(cluster: Cluster) -> None:
    listening = {}
    for family in ("tcp", "tcp6"):
        for line in Path("/proc/net", family).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A":
                listening[int(address.split(":")[1], 16)] = address.split(":")[0]
    ours = {port: address for port, address in listening.items() if cluster.base <= port < cluster.base + 8}
    assert ours == {port: "0100007F" for port in (cluster.base, *range(cluster.base + 2, cluster.base + 6))}


def test_a_step_has_tasks_on_two_nodes(cluster: Cluster) -> None:
    show = 'echo "$SLURM_PROCID $SLURM_NODEID ${CUDA_VISIBLE_DEVICES} $MASTER_ADDR"'
    step = cluster.run("srun", "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", "bash", "-c", show)
    assert sorted(step.splitlines()) == [f"{task} {task // 2} 0,1 127.0.0.1" for task in range(4)]


def test_an_array_is_throttled_and_inherits_the_environment(cluster: Cluster, tmp_path: Path) -> None:
    script = "echo $(($(ls | grep -c running) + 1)) $MASTER_ADDR >$SLURM_ARRAY_TASK_ID.out; touch running.$SLURM_ARRAY_TASK_ID\n"
    script += "sleep 0.5; rm running.$SLURM_ARRAY_TASK_ID\n"
    job = cluster.sbatch("--array=1-5%2", "--output=/dev/null", script=script, folder=tmp_path)
    cluster.wait_for(lambda: not cluster.squeue(f"--jobs={job}", "--states=PENDING,RUNNING"), 120)
    seen = [(tmp_path / f"{task}.out").read_text().split() for task in range(1, 6)]
    assert all(int(beside) <= 2 and address == "127.0.0.1" for beside, address in seen)


def test_a_job_that_must_give_way_is_signalled_and_starts_again(preempting: Cluster, tmp_path: Path) -> None:
    signal = {"user": "USR2", "term": "TERM"}[preempting.environment["DEVCLUSTER_PREEMPT_SIGNAL"]]
    # B: sends USR2 to the batch script alone. TERM goes to the tasks of steps alone; the script's comes after the grace time.
    script = NOTES if signal == "USR2" else STEP
    options = ["--partition=preempt", "--signal=B:USR2@30", "--nodes=4", "--exclusive"]
    job = preempting.sbatch(*options, script=script, folder=tmp_path)
    preempting.wait_for(lambda: notes(tmp_path), 120, "a start")
    higher = preempting.sbatch("--partition=high", "--nodes=4", "--exclusive", script="true\n", folder=tmp_path)
    preempting.wait_for_state(job, "COMPLETED", 120)
    first, signalled, again = notes(tmp_path)
    assert first.startswith("start 0") and signalled.startswith(f"{signal} 0") and again.startswith("start 1")
    assert preempting.state(higher) == "COMPLETED"


def test_a_job_starts_again_elsewhere_when_its_node_dies(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.sbatch(script=NOTES, folder=tmp_path)
    cluster.wait_for(lambda: notes(tmp_path), 120, "a start")
    node = notes(tmp_path)[0].split()[-1]
    cluster.kill_node(node)
    # The signals of a cluster that is asked to end a job do not reach what has no power.
    cluster.scontrol("update", f"nodename={node}", "state=down", "reason=power")
    cluster.wait_for_state(job, "COMPLETED", 120)
    first, again = notes(tmp_path)
    assert first == f"start 0 {node}" and again.startswith("start 1") and not again.endswith(node)
    cluster.start_node(node)
    cluster.wait_for(lambda: "idle" in cluster.run("sinfo", "-hN", "-n", node, "-p", "debug", "-o", "%T"), 120)


def test_accounting_remembers_jobs(accounted: Cluster, tmp_path: Path) -> None:
    job = accounted.sbatch(script="exit 3\n", folder=tmp_path)
    known = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,ExitCode"]
    accounted.wait_for(lambda: accounted.run(*known) == "FAILED|3:0\n", 120)


def test_stop_leaves_no_process(cluster: Cluster, tmp_path: Path) -> None:
    script = "trap '' TERM\ntouch started\nwhile true; do sleep 1; done\n"
    cluster.sbatch("--nodes=2", script=script, folder=tmp_path)
    cluster.wait_for(lambda: (tmp_path / "started").exists(), 120)
    assert processes(cluster.folder)
    cluster.run(DEVCLUSTER, "stop")
    assert not processes(cluster.folder)
    told = cluster.ask(DEVCLUSTER, "status")
    assert told.returncode == 1 and "slurm/devcluster start" in told.stderr
    cluster.start()


@pytest.mark.parametrize(
    "words, variables, sentence",
    [
        (["start", "many"], {}, "N='many' cannot be"),
        (["start"], {"DEVCLUSTER_PORT": "80"}, "DEVCLUSTER_PORT='80' cannot be: it is a whole number, 1024 to 65000"),
        (["start"], {"DEVCLUSTER_ACCT": "mysql"}, "DEVCLUSTER_ACCT='mysql' cannot be: it is dbd or none"),
        (["start"], {"DEVCLUSTER_DIR": "a place"}, "DEVCLUSTER_DIR='a place' cannot be"),
        (["start"], {"DEVCLUSTER_DIR": "/usr"}, "DEVCLUSTER_DIR=/usr holds other files"),
        (["purge"], {"DEVCLUSTER_DIR": "/usr"}, "DEVCLUSTER_DIR=/usr was not made by devcluster"),
        (["env"], {"DEVCLUSTER_DIR": "/nowhere"}, "start it with slurm/devcluster start"),
        (["kill-node", "node9"], {}, "'node9' is no node of this cluster"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    cluster: Cluster, words: list[str], variables: dict[str, str], sentence: str
) -> None:
    done = cluster.ask(DEVCLUSTER, *words, variables=variables)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.splitlines()) == 1


def test_without_slurm_a_sentence_says_what_to_do(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "readlink", "uname", "id"):
        found = next(path for folder in ("/usr/bin", "/bin") if (path := Path(folder, name)).exists())
        (tmp_path / name).symlink_to(found)
    bare = Cluster()
    try:
        done = bare.ask(DEVCLUSTER, "start", variables={"PATH": str(tmp_path)})
        assert done.returncode == 2 and "sbatch" in done.stderr
        assert done.stderr.endswith("get it with slurm/devcluster install\n") and len(done.stderr.splitlines()) == 1
    finally:
        bare.purge()


def test_install_does_nothing_where_all_is_there(cluster: Cluster) -> None:
    if cluster.ask("which", "shellcheck", "mariadbd", variables={"PATH": os.environ["PATH"] + ":/usr/sbin"}).returncode:
        pytest.skip("needs Slurm: slurm/devcluster install")
    assert cluster.run(DEVCLUSTER, "install", timeout=10) == ""
