"""What a process group is to one process: how it is joined, and how it is left."""

from collections.abc import Iterator

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
