"""Profiles of clusters: read, refused with the file and the key, listed, begun from what Slurm tells."""

import shlex
import sys
from pathlib import Path

import pytest

from memdist.cluster import begin, facts, profile
from memdist.errors import ClusterError, ConfigError, MemdistError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of profiles, not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "memdist" / "clusters"


def put(home: Path, text: str, name: str = "site") -> Path:
    home.mkdir(parents=True, exist_ok=True)
    (home / f"{name}.yaml").write_text(text)
    return home / f"{name}.yaml"


def test_profiles_lie_in_the_users_settings(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert profile.folder() == home
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profile.folder() == tmp_path / ".config" / "memdist" / "clusters"


def test_what_is_not_said_has_a_default(home: Path) -> None:
    put(home, "partition: gpu\n")
    assert profile.read("site") == profile.Cluster(partition="gpu")
    put(home, "{}")
    assert profile.read("site").signal_lead == 120


def test_this_machine_needs_no_file() -> None:
    assert not profile.read("local").requeue
    assert profile.known() == ["local"]


def test_known_ones_are_named(home: Path) -> None:
    put(home, "", "zeus")
    put(home, "", "alps")
    (home / "notes.txt").write_text("")
    assert profile.known() == ["alps", "zeus", "local"]
    with pytest.raises(ClusterError) as error:
        profile.read("zues")
    assert str(error.value).startswith("there is no cluster 'zues': did you mean zeus? known are alps, zeus, local; ")


@pytest.mark.parametrize("name", ["../site", "", ".", "a/b", "a b", "-x", "a\nb", "x" * 65, "site.yaml/", "~"])
def test_a_name_never_leads_out_of_the_folder(name: str, home: Path) -> None:
    put(home, "{}")
    put(home.parent, "{}")
    with pytest.raises(ClusterError, match="there is no cluster"):
        profile.read(name)
    with pytest.raises(ConfigError, match="a cluster cannot be called"):
        profile.path(name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("partiton: gpu", "partiton"),
        ("partition: 'gpu; rm -rf ~'", "partition = 'gpu; rm -rf ~' cannot be"),
        ('account: "a\\n#SBATCH --wrap=x"', "account"),
        ("partition: 3", "partition = 3"),
        ("gpu_form: tres", "gpu_form"),
        ("gpus_per_node: -1", "gpus_per_node"),
        ("cpus_per_gpu: 0", "cpus_per_gpu"),
        ("time: soon", "time"),
        ("max_time: 0", "max_time"),
        ("signal_lead: 4000", "signal_lead"),
        ("requeue: perhaps", "requeue"),
        ('modules: ["a\\nb"]', "modules"),
        ('options: ["--x\\n#SBATCH --y"]', "options"),
        ('options: [""]', "options"),
        ("environment: {'A B': x}", "environment"),
        ("environment: {'A;touch x': x}", "environment"),
        ('scratch: "/tmp\\n"', "scratch"),
        ("max_failures: many", "max_failures"),
        ("- gpu", "holds no settings"),
        ("partition: [gpu", "is not valid YAML"),
        ("&a [*a]", ""),
    ],
)
def test_what_cannot_be_is_named_with_file_and_key(text: str, says: str, home: Path) -> None:
    file = put(home, text)
    with pytest.raises(MemdistError) as error:
        profile.read("site")
    for line in str(error.value).split("\n"):
        assert line.startswith(str(file))
    assert says in str(error.value)


def test_every_wrong_key_has_its_line(home: Path) -> None:
    put(home, "a: 1\ntime: soon\nsignal_lead: -1\n")
    with pytest.raises(ConfigError) as error:
        profile.read("site")
    assert len(str(error.value).split("\n")) == 3


def test_a_file_that_cannot_be_read_is_named(home: Path) -> None:
    file = put(home, "")
    file.write_bytes(b"partition: \xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        profile.read("site")


def test_a_profile_is_never_overwritten(home: Path) -> None:
    assert profile.write("site", "partition: gpu\n").read_text() == "partition: gpu\n"
    with pytest.raises(ClusterError, match="is there already: edit it, remove it, or choose another name"):
        profile.write("site", "partition: other\n")
    assert profile.read("site").partition == "gpu"
    with pytest.raises(ConfigError, match="that is this machine"):
        profile.write("local", "")


def test_what_starts_python() -> None:
    assert profile.Cluster().python_words == shlex.quote(sys.executable)
    inside = profile.Cluster(container="apptainer exec --nv /images/memdist.sif", python="/opt/my python")
    assert inside.python_words == "apptainer exec --nv /images/memdist.sif '/opt/my python'"


PARTITIONS = (
    facts.Partition(name="no", nodes=3, cpus=64, megabytes=128000),
    facts.Partition(
        name="2080", default=True, seconds=43200, nodes=2, gpus=4, gpu_type="rtx", cpus=32, megabytes=64000
    ),
    facts.Partition(name="a, b: c # d", nodes=1, gpus=8, cpus=7),
)


@pytest.mark.parametrize("chosen", PARTITIONS, ids=lambda one: one.name)
@pytest.mark.parametrize("above", ["home", "null", "a, [b]: #c"])
def test_what_is_begun_can_be_read(
    chosen: facts.Partition, above: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / above / "me").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / above / "me"))
    text = begin.text(facts.Facts(PARTITIONS), chosen, begin._homes(), guessed=True)
    put(home, text)
    if chosen.name == "a, b: c # d":  # no partition of Slurm's is called so, and it goes no further
        with pytest.raises(ConfigError, match="partition = 'a, b: c # d'"):
            profile.read("site")
        return
    found = profile.read("site")
    assert (found.partition, found.gpus_per_node, found.shared) == (chosen.name, chosen.gpus, (tmp_path / above,))
    assert found.max_time == ("12:00:00" if chosen.seconds else None)
    assert found.cpus_per_gpu == {"no": 64, "2080": 8}[chosen.name]


@pytest.mark.parametrize("file", sorted((ROOT / "slurm" / "clusters").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_can_be_read(file: Path, home: Path) -> None:
    put(home, file.read_text(), file.stem)
    assert profile.read(file.stem) != profile.Cluster()


def test_there_are_examples() -> None:
    assert len(list((ROOT / "slurm" / "clusters").glob("*.yaml"))) == 3
