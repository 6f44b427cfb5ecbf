"""ZeRO: optimiser states, gradients and weights shared out over the ranks by DeepSpeed, an engine a network."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from memdist.config import Deepspeed
from memdist.distributed import pieces
from memdist.distributed.group import Group
from memdist.distributed.pieces import Fetch, Piece, Pieces
from memdist.distributed.strategy import Make, Stepped
from memdist.model import Stage, Update


@dataclass(frozen=True)
class _Span:
    """Where the stretch of a parameter lies that this rank moves."""

    flat: Tensor
    """fp32: stretches of many parameters, laid end to end; what the optimiser knows as its parameter."""
    offset: int
    """Where in `flat` it begins."""
    start: int
    """Where in the flattened parameter it begins."""
    count: int

    def of(self, flat: Tensor) -> Tensor:
        """The stretch of a tensor that is laid out as `flat` is."""
        return flat.detach().narrow(0, self.offset, self.count)


class Zero(Group):
    """ZeRO stage 1, 2 or 3 (Rajbhandari et al. 2019, arXiv 1910.02054).

    Engines are fp32 under autocast in each precision, so that the results are those of ddp; and each network has its own
    loss scale, as there.
    """

    shares = True

    def __init__(
        self,
        device: torch.device,
        precision: str,
        hang_minutes: float = 10.0,
        *,
        settings: Deepspeed,
        micro: int,
        count: int,
    ) -> None:
        """Join the process group; a step has `count` micro-batches of `micro` pictures on each rank."""
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        super().__init__(device, precision, hang_minutes)
        import deepspeed

        _quiet()
        if device.type == "cpu":
            # An extension that would be compiled first; gloo does without.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        _forget()
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False, dist_init_required=False)
        self._settings, self._micro, self._count = settings, micro, count
        self._engines: dict[str, Any] = {}
        self._spans: dict[str, dict[str, _Span]] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        self._scales: dict[str, dict[str, Any]] = {}
        self._last = True

    def prepare(self, stage: Stage, make: Make, clips: Mapping[str, float | None]) -> None:
        """Take over networks that are already on the device, and make their optimisers and engines."""
        import deepspeed

        self._bare, self._clips, self._training = dict(stage.nets), dict(clips), None
        self._engines, self._wrapped, self._weights, self.optimisers, self._spans = {}, {}, {}, {}, {}
        for name, net in self._bare.items():
            # Named by the ranks' order alone: engines are made in one order everywhere.
            weights = dict(net.named_parameters())
            self._weights[name] = weights
            self._shapes[name] = {key: tuple(weight.shape) for key, weight in weights.items()}
            engine, optimiser, _, _ = deepspeed.initialize(
                model=net,
                optimizer=make(name, list(weights.values())),
                config=self._config(clips[name], sum(weight.numel() for weight in weights.values())),
                dist_init_required=False,
            )
            # Its own scaler moves once for each group of weights, and its state cannot be had.
            optimiser.torch_autocast_gradscaler = None
            self._engines[name] = self._wrapped[name] = engine
            self.optimisers[name] = optimiser.optimizer
            self._spans[name] = {
                key: span for key, weight in weights.items() if (span := self._span(optimiser, weight))
            }
        if self.precision == "fp16":
            scale = torch.amp.GradScaler("cpu").state_dict()
            self._scales = {name: dict(scale) for name in self._bare}

    def _config(self, clip: float | None, numbers: int) -> dict[str, Any]:
        # The bucket in which gradients are gathered is taken at its full size: by default 2 GB.
        zero: dict[str, Any] = {"stage": self._settings.stage, "reduce_bucket_size": min(500_000_000, numbers)}
        if self._settings.offload != "none":
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        if self._settings.offload == "all":
            zero["offload_param"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": self._micro,
            "gradient_accumulation_steps": self._count,
            # Left out, it would be 1.0.
            "gradient_clipping": clip or 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
        }
        if self.precision in ("bf16", "fp16"):
            dtype = "bfloat16" if self.precision == "bf16" else "float16"
            # An empty list: by default gradients of convolutions would be summed over ranks in half precision.
            config["torch_autocast"] = {"enabled": True, "dtype": dtype, "lower_precision_safe_modules": []}
        return config

    def _span(self, optimiser: Any, weight: nn.Parameter) -> _Span | None:
        if self._settings.stage == 3:
            group, offset, padded = optimiser.grad_position[optimiser.get_param_id(weight)]
            start = min(self.rank * padded, weight.ds_numel)  # type: ignore[attr-defined]
            count = min(padded, weight.ds_numel - start)  # type: ignore[attr-defined]
            return _Span(optimiser.fp32_partitioned_groups_flat[group], offset, start, count) if count else None
        mapping = weight._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        flat = optimiser.single_partition_of_fp32_groups[mapping.param_group_index]
        return _Span(flat, here.start, there.start, here.numel)

    def weights(self, net: str) -> Pieces:
        """What this rank holds of a network's fp32 weights, by parameter."""
        shapes = self._shapes[net]
        return {key: Piece(shapes[key], span.start, span.of(span.flat)) for key, span in self._spans[net].items()}

    def moments(self, net: str) -> Pieces:
        """What this rank holds of the state of a network's optimiser, by <kind>/<parameter>."""
        state, shapes = self.optimisers[net].state, self._shapes[net]
        return {
            f"{kind}/{key}": Piece(shapes[key], span.start, span.of(value))
            if value.shape == span.flat.shape
            # A step count: of a parameter that other ranks move it is not known here.
            else Piece(tuple(value.shape), 0, value)
            for key, span in self._spans[net].items()
            for kind, value in state.get(span.flat, {}).items()
            if isinstance(value, Tensor)
        }

    def take_moments(self, net: str, stored: Mapping[str, tuple[int, ...]], fetch: Fetch) -> None:
        """Restore the state of a network's optimiser: names and shapes as `moments` gave them."""
        optimiser = self.optimisers[net]
        fused = optimiser.param_groups[0].get("fused") or optimiser.param_groups[0].get("capturable")
        for name, shape in stored.items():
            kind, _, key = name.partition("/")
            span = self._spans[net].get(key)
            if span is None:
                continue
            state = optimiser.state[span.flat]
            if shape == self._shapes[net][key]:
                if kind not in state:
                    state[kind] = torch.zeros_like(span.flat, requires_grad=False)
                piece = Piece(shape, span.start, span.of(state[kind]))
            else:
                state[kind] = torch.zeros(shape, device=span.flat.device if fused else "cpu")
                piece = pieces.whole(state[kind])
            pieces.fill({name: piece}, fetch)

    @torch.no_grad()
    def weights_changed(self, fetch: Fetch) -> None:
        """Forward passes use other copies than the optimiser moves: left alone, the next step would come from old weights."""
        for net, weights in self._weights.items():
            for key, weight in weights.items():
                self._write(f"{net}.{key}", weight, fetch)
            self._gather_small(net)

    def _write(self, name: str, weight: Any, fetch: Fetch) -> None:
        if self._settings.stage < 3:
            weight.data.copy_(fetch(name, 0, weight.numel()).view(weight.shape))
            return
        share = weight.ds_tensor
        start = min(self.rank * share.ds_numel, weight.ds_numel)
        count = min(share.ds_numel, weight.ds_numel - start)
        if count:
            share.data.view(-1)[:count].copy_(fetch(name, start, count))

    def _gather_small(self, net: str) -> None:
        """Under stage 3 small weights stay gathered from step to step: they are gathered anew from what has changed."""
        if self._settings.stage < 3:
            return
        optimiser = self._engines[net].optimizer
        # What is gathered already would stay as it was.
        optimiser._partition_all_parameters()
        if small := optimiser.persistent_parameters:
            small[0].all_gather(small)

    @contextlib.contextmanager
    def micro(self, net: str, last: bool) -> Iterator[None]:
        """Surround forward and backward of one micro-batch."""
        self._last = last
        with self.autocast():
            yield

    def backward(self, net: str, value: Tensor, accumulations: int) -> None:
        """Add the gradient of a micro-batch's share of the loss."""
        engine = self._engines[net]
        if net in self._scales:
            engine.optimizer.override_loss_scale(self._scales[net]["scale"])
        engine.backward(value.float() / accumulations if accumulations > 1 else value.float(), scale_wrt_gas=False)
        if not self._last:
            engine.step()  # only counts: the last micro-batch's moves the weights

    def step(self, update: Update) -> Stepped:
        """Unscale, clip, step, zero, `after`; under fp16 a step can be skipped."""
        net = update.net
        engine = self._engines[net]
        engine.step()
        taken = not engine.optimizer.overflow
        size = torch.as_tensor(engine.optimizer._global_grad_norm, dtype=torch.float32, device=self.device)
        if net in self._scales:
            self._scaled(self._scales[net], taken)
        if update.after is not None and taken:
            with torch.no_grad():
                for piece in self.weights(net).values():
                    update.after(piece.values)
                for weight in self._weights[net].values():
                    # Element by element on equal numbers: the copies stay equal.
                    update.after(weight.ds_tensor.data if self._settings.stage == 3 else weight.data)  # type: ignore[attr-defined]
                self._gather_small(net)
        return Stepped(size, torch.tensor(float(taken), device=self.device) if net in self._scales else None)

    def _scaled(self, state: dict[str, Any], taken: bool) -> None:
        """Move a loss scale as torch's GradScaler does."""
        state["_growth_tracker"] = state["_growth_tracker"] + 1 if taken else 0
        if not taken:
            state["scale"] *= state["backoff_factor"]
        elif state["_growth_tracker"] == state["growth_interval"]:
            state["scale"], state["_growth_tracker"] = state["scale"] * state["growth_factor"], 0

    def scalers(self) -> dict[str, dict[str, float]]:
        """State of the loss scales, by network."""
        return {name: dict(state) for name, state in self._scales.items()}

    def load_scalers(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Restore what `scalers` gave."""
        self._scales = {name: dict(state[name]) for name in self._scales}

    def close(self) -> None:
        """Leave the process group."""
        for engine in () if self._fails else self._engines.values():
            engine.destroy()
        super().close()


def _forget() -> None:
    """Groups that DeepSpeed remembers of a world that this process has left."""
    from deepspeed import comm
    from deepspeed.utils import groups

    comm.comm.cdb = None
    for name, value in vars(groups).items():
        if name.isupper() and name.startswith("_") and not isinstance(value, str):
            setattr(groups, name, {} if isinstance(value, dict) else None)
    groups.mesh_device = None


def _quiet() -> None:
    """What DeepSpeed says of itself at each start is for its developers."""
    from deepspeed.utils.logging import logger

    logger.setLevel(logging.ERROR)
