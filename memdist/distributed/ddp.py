"""Distributed data parallelism through Accelerate: every rank holds the networks, gradients are averaged."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from memdist.distributed.group import Group

_NOT_THEIRS = ("ACCELERATE_USE_", "ACCELERATE_DYNAMO_", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_")


class Ddp(Group):
    """Each rank holds all weights (Li et al. 2020, arXiv 2006.15704)."""

    def __init__(self, device: torch.device, precision: str, hang_minutes: float = 10.0) -> None:
        """Join the process group, and have Accelerate follow."""
        super().__init__(device, precision, hang_minutes)
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs

        # `accelerate launch` hands on what a configuration file says of strategy, precision and compiler: here the run says it.
        for key in [key for key in os.environ if key.startswith(_NOT_THEIRS)]:
            del os.environ[key]
        AcceleratorState._reset_state(reset_partial_state=True)  # of a group that this process has left
        # Mixed precision is ours: Accelerate shares one loss scaler between all optimisers. Buffers are averaged in
        # `finish_step`: broadcasting them in forward would change saved tensors of an earlier forward of the same step.
        self._accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        assert self.world == self._accelerator.num_processes, "every rank believes that it is alone"

    def _wrap(self, net: nn.Module, *, whole: bool) -> nn.Module:
        with warnings.catch_warnings():
            # Newer torch has another word for it, which the oldest that we run on does not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped: nn.Module = self._accelerator.prepare_model(net, device_placement=False)
        return wrapped

    @contextlib.contextmanager
    def micro(self, net: str, last: bool) -> Iterator[None]:
        """Surround forward and backward of one micro-batch; gradients are reduced in the last one only."""
        wrapped = self._wrapped[net]
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
        with contextlib.nullcontext() if last else wrapped.no_sync(), self.autocast():
            yield
