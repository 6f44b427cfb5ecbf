"""Who a process is among the ranks of a job, from environments as launchers leave them."""

from typing import Any

import pytest

from memdist.errors import ConfigError, is_shared
from memdist.launch import place, slurm
from memdist.launch.place import Place

MET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MET}
DEEPSPEED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_RANK": "0", **MET}
# `srun --nodes=2 --ntasks=3` on three nodes: the first has two tasks.
STEP = {
    "SLURM_JOB_ID": "71",
    "SLURM_JOB_NODELIST": "gpu[07-09]",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place()),
        ({"WORLD_SIZE": "1"}, Place()),
        ({"RANK": "0"}, Place()),
        (TORCHRUN, Place(3, 4, 1, 2)),
        (DEEPSPEED, Place(1, 2, 1, 2)),
        (STEP, Place(2, 3, 0, 1)),
        # Slurm's variables also stand round what another launcher has started there.
        (STEP | TORCHRUN, Place(3, 4, 1, 2)),
        # A batch script; the shell of salloc, which is a step of one task; a step of one task.
        ({"SLURM_JOB_ID": "71", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Place()),
        (STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}, Place()),
        (STEP | {"SLURM_STEP_ID": str(0xFFFFFFFB)}, Place()),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, Place()),
    ],
)
def test_a_place_is_recognised(environment: dict[str, str], expected: Place) -> None:
    given = dict(environment)
    assert place.take(given) == expected
    # What follows reads the usual names alone.
    assert place.read(given, joins=True) == expected
    assert "LOCAL_SIZE" not in given or given["LOCAL_WORLD_SIZE"] == given["LOCAL_SIZE"]


def test_a_step_of_slurm_meets_at_its_first_node() -> None:
    given = dict(STEP)
    place.take(given)
    assert given["MASTER_ADDR"] == "gpu07"
    port = given["MASTER_PORT"]
    assert 10000 <= int(port) < 30000
    for key in ("SLURM_JOB_ID", "SLURM_STEP_ID"):
        other = STEP | {key: str(int(STEP[key]) + 1)}
        place.take(other)
        assert other["MASTER_PORT"] != port, key
    one = STEP | {"SLURM_STEP_NODELIST": "gpu07", "SLURM_STEP_TASKS_PER_NODE": "3", "SLURM_NODEID": "0"}
    place.take(one)
    assert (one["MASTER_ADDR"], one["LOCAL_WORLD_SIZE"]) == ("127.0.0.1", "3")
    told = STEP | {"MASTER_ADDR": "a", "MASTER_PORT": "5"}
    place.take(told)
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("a", "5")


def test_a_task_that_sees_its_own_gpu_alone_takes_that() -> None:
    one = {"SLURM_STEP_NODELIST": "a", "SLURM_STEP_TASKS_PER_NODE": "3", "SLURM_NODEID": "0", "SLURM_LOCALID": "2"}
    bound = {"SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0"}
    assert place.take(STEP | one | bound) == Place(2, 3, 0, 1)
    assert place.take(STEP | one | bound | {"CUDA_VISIBLE_DEVICES": "0,1,2"}) == Place(2, 3, 2, 3)
    assert place.take(STEP | one | {"CUDA_VISIBLE_DEVICES": "0"}) == Place(2, 3, 2, 3)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc' in the environment cannot be: it is a number from 1 on"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE='0'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set and RANK is not"),
        ({"WORLD_SIZE": "2", "RANK": "2", **MET}, "RANK=2 and WORLD_SIZE=2 cannot be"),
        ({"RANK": "1"}, "RANK=1 and no WORLD_SIZE cannot be"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK='-1'"),
        ({"WORLD_SIZE": "2", "RANK": "²"}, "RANK='²'"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_ADDR, the address at which rank 0 is met, is not"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a"}, "MASTER_PORT, the port at which"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "MASTER_PORT=70000 cannot be"),
        (TORCHRUN | {"LOCAL_RANK": "one"}, "LOCAL_RANK='one'"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2, LOCAL_WORLD_SIZE=2 and WORLD_SIZE=4 cannot be"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5 and WORLD_SIZE=4 cannot be"),
        (STEP | {"SLURM_PROCID": ""}, "SLURM_PROCID= says not which one this is"),
        (STEP | {"SLURM_STEP_NODELIST": "a["}, "SLURM_STEP_NODELIST='a[' names no nodes"),
    ],
)
def test_what_cannot_be_is_a_sentence(environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place.take(dict(environment))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_only_shares_work_needs_no_meeting_place() -> None:
    assert place.take({"WORLD_SIZE": "2", "RANK": "1"}, joins=False) == Place(1, 2, 0, 1)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a[01-03,7],b", ["a01", "a02", "a03", "a7", "b"]),
        ("a,b[2],c-d.e", ["a", "b2", "c-d.e"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("r[1-2]n[1,3]x", ["r1n1x", "r1n3x", "r2n1x", "r2n3x"]),
    ],
)
def test_lists_of_nodes(text: str, names: list[str]) -> None:
    assert list(slurm.hosts(text)) == names


@pytest.mark.parametrize("text", ["", "a[", "a]", "a[1-]", "a[b]", "a,,b", ",a", "a,", "a[[1]]", "a b"])
def test_what_is_no_list_of_nodes(text: str) -> None:
    with pytest.raises(ConfigError, match="names no nodes"):
        list(slurm.hosts(text))


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        # One machine: all ranks raise it, rank 0 tells. Several: the first rank of each that lacks one.
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"RANK": "3", "LOCAL_RANK": "1"}, True),
    ],
)
def test_more_ranks_than_gpus(changes: dict[str, str], shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (TORCHRUN | changes).items():
        monkeypatch.setenv(key, value)
    place.enough(2)
    with pytest.raises(ConfigError, match="^2 processes were started on this machine, which has 1 GPU: ") as caught:
        with place.alike():
            place.enough(1)
    assert is_shared(caught.value) == shared


def test_where_it_is_not_known_who_has_met_a_mistake_all_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, Any] = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError) as caught, place.alike():
        place.enough(1)
    assert not is_shared(caught.value)
