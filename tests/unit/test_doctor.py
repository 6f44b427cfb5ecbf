"""The doctor: runs whatever is missing, and says what is lost."""

import importlib.metadata
import os
import shutil
import stat
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from memdist import doctor


def _missing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    version = importlib.metadata.version

    def installed(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", installed)


def _finding(found: str) -> doctor.Finding:
    (finding,) = [finding for finding in doctor.examine() if found in finding.found]
    return finding


def test_this_machine_can_train() -> None:
    report, well = doctor.report()
    assert well
    assert report.row_count == len(list(doctor.examine()))
    topics = [finding.topic for finding in doctor.examine()]
    assert set(topics) >= {"versions", "devices", "several processes", "Slurm", "disk"}
    assert topics == sorted(topics, key=topics.index), "topics stand together"
    # A build's own name for itself (+cu130) need not be the package's.
    assert _finding(f"torch {torch.__version__.partition('+')[0]}").trouble == ""


def test_what_is_optional_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("deepspeed", "ray", "submitit", "tensorboard")
    _missing(monkeypatch, *names)
    _, well = doctor.report()
    assert well
    for name in names:
        if name == "deepspeed" and sys.platform != "linux":
            continue
        finding = _finding(f"{name} is missing")
        assert f"pip install '{name}" in finding.trouble and not finding.fatal


def test_what_is_needed_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    _missing(monkeypatch, "safetensors")
    _, well = doctor.report()
    assert not well
    assert "pip install 'safetensors>=" in _finding("safetensors is missing").trouble


def test_a_version_that_was_not_tested_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    finding = _finding("torch 1.0")
    assert "memdist is made for torch" in finding.trouble and "2.11" in finding.trouble


def test_it_runs_from_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    _, well = doctor.report()
    assert well
    assert "not installed with pip" in _finding("run from its sources").trouble


def test_a_torch_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    _, well = doctor.report()
    assert not well
    assert _finding("torch cannot be imported").fatal


def _sinfo(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    for name in ("sinfo", "sbatch"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_partitions_of_slurm_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _sinfo(tmp_path, monkeypatch, "echo 'gpu* up 4 gpu:a100:8'; echo 'old down 2 (null)'")
    assert _finding("partition gpu* 4 nodes gpu:a100:8").trouble == ""
    assert _finding("partition old 2 nodes").trouble == "jobs in old: the partition is down"


def test_a_slurm_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _sinfo(tmp_path, monkeypatch, "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    assert "Unable to contact slurm controller" in _finding("sinfo fails").trouble


def test_little_room_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**26, 0, 2**26))
    monkeypatch.setenv("MEMDIST_CACHE", str(tmp_path / "absent" / "cache"))
    assert "less than 2 GiB" in _finding(f"cache {tmp_path / 'absent' / 'cache'}: 0.1 GiB free").trouble
    if Path("/dev/shm").is_dir():
        assert "--shm-size" in _finding("/dev/shm").trouble
