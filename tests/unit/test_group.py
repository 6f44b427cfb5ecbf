"""What a process group is to one process: how it is joined, and how it is left."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from memdist import errors
from memdist.distributed.group import Group


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    made = Group(torch.device("cpu"), "fp32")
    yield made
    if dist.is_initialized():
        made.device = torch.device("cpu")
        made.close()


@pytest.mark.parametrize(
    ("device", "shared", "waits"), [("cuda", False, False), ("cuda", True, True), ("cpu", False, True)]
)
def test_a_rank_that_fails_alone_says_no_farewell_on_gpus(device: str, shared: bool, waits: bool, group: Group) -> None:
    group.device = torch.device(device)
    error = ValueError("of this rank")
    if shared:
        errors.shared(error)
    with pytest.raises(ValueError, match="of this rank"):
        try:
            raise error
        finally:
            group.close()
    assert dist.is_initialized() is not waits


def test_a_launcher_need_not_number_the_only_rank_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Joins(Exception):
        pass

    def join(*_: Any, **__: Any) -> None:
        raise Joins

    for key, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": ""}.items():
        monkeypatch.setenv(key, value)
    del os.environ["LOCAL_RANK"]
    monkeypatch.setattr(dist, "init_process_group", join)
    with pytest.raises(Joins):
        Group(torch.device("cpu"), "fp32")
    assert os.environ["LOCAL_RANK"] == "0"
