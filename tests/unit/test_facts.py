"""What Slurm tells: sinfo's and scontrol's words of several sites, and programs that hang, fail or print junk."""

from pathlib import Path

import pytest

from memdist.cluster import facts
from memdist.cluster.facts import Partition
from memdist.errors import ClusterError
from tests import fake_slurm


@pytest.mark.parametrize(
    ("gres", "gpus", "kind"),
    [
        ("(null)", 0, None),
        ("", 0, None),
        ("gpu", 1, None),
        ("gpu:8", 8, None),
        ("gpu:0", 0, None),
        ("gpu:a100:4", 4, "a100"),
        ("gpu:a100:4(S:0-1)", 4, "a100"),
        ("gpu:8(S:0,2-3)", 8, None),
        ("gpu:a100:4(S:0,1),nvme:1", 4, "a100"),
        ("lscratch:800,gpu:v100x:2(S:0-1)", 2, "v100x"),
        ("gpu:a100:2(S:0),gpu:v100:2(S:1)", 4, None),
        ("gpu:a100:2,gpu:a100:2", 4, "a100"),
        ("gpu:nvidia_a100_1g.5gb:7(S:0)", 7, "nvidia_a100_1g.5gb"),
        ("gpu:tesla-t4:1", 1, "tesla-t4"),
        ("mps:400,shard:8", 0, None),
        ("gpumem:80G,gpu:h100:8(S:0-1)", 8, "h100"),
    ],
)
def test_gpus_of_a_node(gres: str, gpus: int, kind: str | None) -> None:
    assert facts.gpus_of(gres) == (gpus, kind)


def test_a_site_of_one_kind_of_node() -> None:
    (only,) = facts.partitions("debug|30:00|2|gpu:8|128|1031000|debug*\n")
    assert only == Partition(
        name="debug", default=True, seconds=1800, nodes=2, gpus=8, gpu_type=None, cpus=128, megabytes=1031000
    )


def test_several_partitions_allow_what_the_most_generous_does() -> None:
    text = "short|1:00:00|9|gpu:a100:2|64|1000|short\nlong|2-00:00:00|3|gpu:a100:4|32|2000|long\ncpu|infinite|1|(null)|8|5|cpu\n"
    found = facts.Facts(facts.partitions(text))
    assert found.partition("short,long") == Partition(
        name="short,long", seconds=2 * 86400, nodes=9, gpus=4, gpu_type="a100", cpus=64, megabytes=2000
    )
    assert found.partition("short,cpu").seconds is None
    with pytest.raises(ClusterError, match="there is no partition 'lang' on this cluster: there are short, long, cpu"):
        found.partition("short,lang")


def test_a_site_whose_partitions_have_several_kinds_of_nodes() -> None:
    text = """\
gpu|7-00:00:00|10|gpu:a100:4(S:0-1)|64+|515000+|gpu*
gpu|7-00:00:00|2|gpu:a100:8(S:0-1)|96|1031000|gpu*
gpu|7-00:00:00|1|(null)|32|64000|gpu*
mixed|1-00:00:00|3|gpu:a100:4|64|515000|mixed
mixed|1-00:00:00|3|gpu:v100:2|40|386000|mixed
cpu|infinite|100|(null)|128|257000|cpu
"""
    gpu, mixed, cpu = facts.partitions(text)
    assert (gpu.nodes, gpu.gpus, gpu.gpu_type, gpu.cpus, gpu.megabytes) == (13, 8, "a100", 96, 1031000)
    assert gpu.default and gpu.seconds == 7 * 86400
    assert (mixed.nodes, mixed.gpus, mixed.gpu_type, mixed.default) == (6, 4, None, False)
    assert (cpu.gpus, cpu.seconds) == (0, None)


def test_a_partition_whose_first_nodes_have_no_gpus() -> None:
    (only,) = facts.partitions("all|1:00:00|4|(null)|8|1000|all\nall|1:00:00|4|gpu:h100:2|8|1000|all\n")
    assert (only.gpus, only.gpu_type) == (2, "h100")


@pytest.mark.parametrize("text", ["", "\n\n", "slurm_load_partitions: Unable\n", "a|b|c\n", "x" * 10000, "\0|" * 5])
def test_junk_is_no_partition(text: str) -> None:
    assert facts.partitions(text) == ()


def test_fields_that_say_nothing_are_nothing() -> None:
    (only,) = facts.partitions("p|n/a|?|?|?|?|p\n")
    assert only == Partition(name="p")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("MaxArraySize            = 1001\n", 1001),
        ("Configuration data as of 2026-01-01\nMaxArraySize = 40000\nMaxJobCount = 10\n", 40000),
        ("", facts.MAX_ARRAY),
        ("SomethingMaxArraySize = 7\n", facts.MAX_ARRAY),
    ],
)
def test_the_size_of_arrays(text: str, size: int) -> None:
    assert facts.max_array(text) == size


def test_partitions_are_found_by_name_or_default() -> None:
    site = facts.Facts((Partition(name="a"), Partition(name="b", default=True)))
    assert site.partition(None).name == "b" and site.partition("a").name == "a"
    with pytest.raises(ClusterError, match="there is no partition 'c' on this cluster: there are a, b"):
        site.partition("c")
    with pytest.raises(ClusterError, match="no default partition: name one in the cluster's file; there are a"):
        facts.Facts((Partition(name="a"),)).partition(None)


# Programs


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fake_slurm.Slurm:
    monkeypatch.setattr(facts.call, "__defaults__", (2.0,))
    return fake_slurm.Slurm(tmp_path / "slurm", monkeypatch)


def test_what_is_asked(slurm: fake_slurm.Slurm) -> None:
    found = facts.ask()
    assert [one.name for one in found.partitions] == ["gpu", "cpu", "short"] and found.max_array == 1001
    assert slurm.calls("sinfo") == ["-h -a -o %R|%l|%D|%G|%c|%m|%P"] and slurm.calls("scontrol") == ["show config"]


def test_an_answer_of_scontrol_can_be_done_without(slurm: fake_slurm.Slurm) -> None:
    slurm.program("scontrol", "exit 1")
    assert facts.ask().max_array == facts.MAX_ARRAY
    (slurm.folder / "scontrol").unlink()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("exec sleep 60", "Slurm does not answer: sinfo said nothing for 2 s"),
        ("sleep 60", "Slurm does not answer: sinfo said nothing for 2 s"),
        ("exit 3", "sinfo refuses: exit code 3"),
        ("kill -9 $$", "sinfo refuses: exit code -9"),
        ("echo 'sinfo: error: Unable to contact slurm controller' >&2; exit 1", "refuses: Unable to contact slurm"),
        ("echo 'on its output'; exit 1", "sinfo refuses: on its output"),
        ("printf 'a\\033[31m\\r\\n\\nb\\n' >&2; exit 1", "sinfo refuses: a\\x1b[31m; b"),
        ("head -c 3000 /dev/urandom >&2; exit 1", "sinfo refuses: "),
        ("head -c 3000 /dev/urandom", "sinfo shows no partition that you may use"),
        ("", "sinfo shows no partition that you may use"),
    ],
)
def test_a_program_that_goes_wrong_is_a_sentence(body: str, says: str, slurm: fake_slurm.Slurm) -> None:
    slurm.program("sinfo", body)
    with pytest.raises(ClusterError) as error:
        facts.ask()
    assert says in str(error.value) and str(error.value).isprintable()


def test_a_program_that_is_none(slurm: fake_slurm.Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(slurm.folder))
    (slurm.folder / "sinfo").write_bytes(b"\x7fELF")
    with pytest.raises(ClusterError, match="Slurm is not there: sinfo cannot be run: exec format error"):
        facts.ask()
    (slurm.folder / "sinfo").chmod(0o644)
    with pytest.raises(ClusterError, match="Slurm is not there: sinfo cannot be run: permission denied"):
        facts.ask()
    fake_slurm.without(monkeypatch, tmp_path / "empty")
    with pytest.raises(ClusterError, match="Slurm is not there: this machine has no sinfo; submit on a login node"):
        facts.ask()
    assert not facts.there()
