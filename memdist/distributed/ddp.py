"""Distributed data parallelism through Accelerate: every rank holds the networks, gradients are averaged."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from memdist import errors
from memdist.distributed import hang
from memdist.distributed.single import Single


class Ddp(Single):
    """One of several processes that a launcher started (RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set)."""

    def __init__(self, device: torch.device, precision: str, hang_minutes: float = 10.0) -> None:
        """Join the process group: NCCL on GPUs, gloo on CPUs, and a gloo group for what the hosts tell each other."""
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

        super().__init__(device, precision)
        # Mixed precision is ours: Accelerate shares one loss scaler between all optimisers. Buffers are averaged in
        # `finish_step`: broadcasting them in forward would change saved tensors of an earlier forward of the same step.
        self._accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=hang.timeout(hang_minutes)),
            ],
        )
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
        assert self.world == dist.get_world_size(), "every rank believes that it is alone"
        self._hosts = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        self._bits = torch.zeros(8, dtype=torch.int64)
        self._flying: dist.Work | None = None
        hang.start(self.rank, self.world, hang_minutes)

    def _wrap(self, net: nn.Module) -> nn.Module:
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

    def finish_step(self) -> None:
        """Average running statistics over ranks, each step: so a checkpoint never changes what follows it."""
        buffers = [b for net in self._bare.values() for b in _statistics(net)]
        if buffers:
            together = torch.cat([b.flatten() for b in buffers])
            dist.all_reduce(together)
            together /= self.world
            for buffer, part in zip(buffers, torch.split(together, [b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

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

    def close(self) -> None:
        """Leave the process group."""
        hang.stop()
        # A rank that is gone has said why; that it does not answer any more is no news.
        with contextlib.suppress(RuntimeError):
            self.settle()
        self._accelerator.end_training()


def _portable(error: BaseException) -> BaseException:
    """The error, or one of its words if it is of a kind that cannot be sent: the other ranks wait for something."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _statistics(net: nn.Module) -> list[Tensor]:
    return [
        buffer
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
