"""Counting what lives while a pass runs on fake tensors: bytes, operations, calls; and pretending to be a GPU meanwhile."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# CUDA's autocast computes these in fp32, that of CPUs, on which the fake tensors pretend to be, does not.
# https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32
_FP32_ON_CUDA: set[Callable[..., Any]] = {
    *(F.group_norm, F.layer_norm, F.softmax, torch.softmax, F.softplus, Tensor.softmax),
    *(Tensor.sum, torch.sum, Tensor.pow, torch.pow, Tensor.exp, torch.exp, Tensor.log, torch.log),
}


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are alive, but for those known beforehand."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """`known` tensors, and whatever shares their storage, count for nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = [tensor.untyped_storage() for tensor in known]
        self._alive: dict[int, Any] = {storage._cdata: None for storage in self._known}
        self._finished: set[int] = set()
        self._now = self._done = 0
        self.restart()

    def restart(self) -> None:
        """Begin the course and the operations anew."""
        self.beside, self.gradients, self.flops = [float(self._now)], [float(self._done)], 0

    def gradient(self, tensor: Tensor) -> None:
        """Count a tensor among finished gradients from now on."""
        key = tensor.untyped_storage()._cdata
        if key in self._alive and key not in self._finished:
            self._finished.add(key)
            self._now -= tensor.untyped_storage().nbytes()
            self._done += tensor.untyped_storage().nbytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        self.beside.append(self._now)
        self.gradients.append(self._done)
        if count := _FLOPS.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._now += storage.nbytes()
            self._alive[key] = weakref.ref(storage, partial(self._gone, key, storage.nbytes()))

    def _gone(self, key: int, count: int, _: object) -> None:
        del self._alive[key]
        if key in self._finished:
            self._finished.discard(key)
            self._done -= count
        else:
            self._now -= count


def _operations() -> dict[Any, Callable[..., int]]:
    """Operations as torch counts them, and the same for the attention that CPUs have."""
    aten = torch.ops.aten
    forward, backward = aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_backward
    own = {
        aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[forward],
        aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[backward],
    }
    return {**flop_registry, **own}


_FLOPS = _operations()


class _LikeCuda(TorchFunctionMode):
    """Takes to fp32 what CUDA's autocast takes there; dropout keeps a byte a number rather than a number."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            tensor, rate, training, _ = args if len(args) == 4 else (*args, *kwargs.values())
            return torch.native_dropout(tensor, rate, training)[0]
        if func in _FP32_ON_CUDA and isinstance(args[0], Tensor) and args[0].dtype in (torch.bfloat16, torch.float16):
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


@contextlib.contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """What surrounds forward and backward of a micro-batch."""
    like = _LikeCuda() if device == "cuda" else contextlib.nullcontext()
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    with torch.autocast("cpu", halves[precision]) if precision in halves else contextlib.nullcontext(), like:
        yield


@contextlib.contextmanager
def counted(nets: Mapping[str, nn.Module]) -> Iterator[Mapping[str, int]]:
    """How often each network is called meanwhile."""
    calls = dict.fromkeys(nets, 0)

    def count(name: str, *_: Any) -> None:
        calls[name] += 1

    handles = [net.register_forward_pre_hook(partial(count, name)) for name, net in nets.items()]
    yield calls
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def gradients(parameters: Iterable[nn.Parameter], live: Live) -> Iterator[None]:
    """Count gradients of these parameters as finished once they are."""

    def done(parameter: Tensor) -> None:
        assert parameter.grad is not None
        live.gradient(parameter.grad)

    handles = [parameter.register_post_accumulate_grad_hook(done) for parameter in parameters]  # type: ignore[no-untyped-call]
    yield
    for handle in handles:
        handle.remove()


def compute_again(block: nn.Module, device: str) -> None:
    """Let a block keep its input alone and compute the rest again in backward; `device` "cuda" pretends to be one."""
    from torch.utils.checkpoint import checkpoint

    forward = block.forward

    def same(*given: Any) -> Any:
        # A mode that is at work calls backward without itself: what is computed again there needs its own.
        with _LikeCuda() if device == "cuda" else contextlib.nullcontext():
            return forward(*given)

    # The state of random generators, which is kept as well, is a few kilobytes.
    block.forward = partial(checkpoint, same, use_reentrant=False, preserve_rng_state=False)
