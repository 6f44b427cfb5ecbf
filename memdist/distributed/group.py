"""Several processes that share a step: their process groups, and what they tell each other."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from memdist import errors
from memdist.distributed import hang
from memdist.distributed.blocks import statistics
from memdist.distributed.pieces import Begin, Pieces, Put
from memdist.distributed.single import Single
from memdist.distributed.strategy import norm
from memdist.launch import place

CHUNK = 2**26
"""Bytes that are sent at once, at most."""


class Group(Single):
    """One of the processes that a launcher started (RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set), or one alone."""

    def __init__(self, device: torch.device, precision: str, hang_minutes: float = 10.0) -> None:
        """Join the process group: NCCL on GPUs, gloo on CPUs, and a gloo group for what the hosts tell each other."""
        super().__init__(device, precision)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # torch and DeepSpeed still call some collectives by names that torch 2.13 calls old.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        backend = "nccl" if device.type == "cuda" else "gloo"
        here = place.read(os.environ)
        # Accelerate and DeepSpeed ask; not every launcher says it where each machine has one rank.
        os.environ.setdefault("LOCAL_RANK", str(here.local))
        if here.world > 1:
            dist.init_process_group(backend, timeout=hang.timeout(hang_minutes))
        else:
            alone = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=alone, rank=0, world_size=1, timeout=hang.timeout(hang_minutes))
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._hosts = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        # For the thread that writes checkpoints: collectives of two threads in one group would meet in the wrong order.
        self._files = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        self._bits = torch.zeros(8, dtype=torch.int64)
        self._flying: dist.Work | None = None
        if self.world > 1:
            hang.start(self.rank, self.world, hang_minutes)

    def finish_step(self) -> None:
        """Average running statistics over ranks, each step: so a checkpoint never changes what follows it."""
        buffers = [b for net in self._bare.values() for b in statistics(net)]
        if buffers:
            together = torch.cat([b.flatten() for b in buffers])
            dist.all_reduce(together)
            together /= self.world
            for buffer, part in zip(buffers, torch.split(together, [b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def weight_norm(self, net: str, module: nn.Module) -> Tensor:
        """L2 norm of all weights of a network, a scalar on the device."""
        if not self.shares:
            return super().weight_norm(net, module)
        return self._shared_norm([piece.values for piece in self.weights(net).values()])

    def _shared_norm(self, tensors: list[Tensor]) -> Tensor:
        """L2 norm of all numbers of which each rank holds some, none of them twice."""
        own = [tensor for tensor in tensors if tensor.numel()]
        square = norm(own).square().to(self.device) if own else torch.zeros((), device=self.device)
        dist.all_reduce(square)
        return square.sqrt()

    def mean(self, values: Tensor) -> Tensor:
        """Mean over ranks, element by element."""
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate equally shaped tensors of all ranks along the first axis, in rank order."""
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def agree(self, wishes: int) -> int:
        """Bitwise or of the wishes that all ranks had at the last call; ours of now are known at the next one."""
        answer = self.settle()
        # gloo has no bitwise or; a maximum over wishes would lose one, so each wish has its own element.
        self._bits = torch.tensor([wishes >> bit & 1 for bit in range(8)])
        self._flying = dist.all_reduce(self._bits, op=dist.ReduceOp.MAX, group=self._hosts, async_op=True)
        return answer

    def settle(self) -> int:
        """Wait for what `agree` has under way, which the other ranks sent a step ago, and give it."""
        if self._flying is None:
            return 0
        self._flying.wait()
        self._flying = None
        return sum(bit << place for place, bit in enumerate(self._bits.tolist()))

    def first(self, work: Callable[[], None]) -> None:
        """Let the main process do something before the others go on; its failure is everybody's."""
        failure: BaseException | None = None
        if self.main:
            try:
                with hang.alone("works for all"):
                    work()
            # An interruption as well: the signal may have reached this rank alone, and the others wait here for it.
            except (Exception, KeyboardInterrupt) as error:
                failure = error
        words = [None if failure is None else _portable(failure)]
        dist.broadcast_object_list(words, src=0, group=self._hosts)
        if failure is None:
            failure = words[0]
        if failure is not None:
            errors.shared(failure)
            raise failure

    def collect(self, pieces: Pieces, begin: Begin) -> None:
        """Hand the pieces of all ranks to the main process, one rank's after the other; all ranks call it, in a thread.

        Where ranks hold all of everything the main one's are enough.
        """
        if not self.shares:
            if self.main:
                super().collect(pieces, begin)
            return
        mine = {n: (p.shape, p.values.dtype, p.start, p.count) for n, p in pieces.items() if self.main or p.sent}
        tables: list[Any] = [None] * self.world
        dist.gather_object(mine, tables if self.main else None, dst=0, group=self._files)
        if not self.main:
            for name in mine:
                for chunk in pieces[name].values.view(torch.uint8).split(CHUNK):  # type: ignore[no-untyped-call]
                    dist.send(chunk, dst=0, group=self._files)
            return
        kinds = {name: (shape, dtype) for table in tables for name, (shape, dtype, _, _) in table.items()}
        failure: OSError | None = None
        put: Put | None = None
        try:
            put = begin(kinds)
            for name, piece in pieces.items():
                put(name, piece.start, piece.values)
        except OSError as error:
            failure = error
        for rank, table in enumerate(tables[1:], 1):
            for name, (_, dtype, start, count) in table.items():
                values = torch.empty(count, dtype=dtype)
                for chunk in values.view(torch.uint8).split(CHUNK):  # type: ignore[no-untyped-call]
                    dist.recv(chunk, src=rank, group=self._files)
                # What finds no room is received nevertheless: the others wait to be heard.
                if put is not None and failure is None:
                    try:
                        put(name, start, values)
                    except OSError as error:
                        failure = error
        if failure is not None:
            raise failure

    @property
    def _fails(self) -> bool:
        """Whether this rank is on its way out with an error of its own, while others may wait for it on their GPUs."""
        error = sys.exc_info()[1]
        return self.device.type == "cuda" and error is not None and not errors.is_shared(error)

    def close(self) -> None:
        """Leave the process group."""
        hang.stop()
        if self._fails:
            # NCCL's farewell waits for the other ranks, which wait for this one: nobody would hear of the error. The end of
            # the process parts it from them.
            return
        # A rank that is gone has said why; that it does not answer any more is no news.
        with contextlib.suppress(RuntimeError):
            self.settle()
        dist.destroy_process_group()


def _portable(error: BaseException) -> BaseException:
    """The error, or one of its words if it is of a kind that cannot be sent: the other ranks wait for something."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
