"""Pictures in, maps out, by a restored model: in batches of one shape, as fast as the device allows.

All batches have the same shape, the last one filled up, so that a map does not depend on how many others there are, and so
that a compiled network is compiled once.
"""

from __future__ import annotations

import contextlib
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memdist import rundir
from memdist.data import cache as cache_
from memdist.data import loader
from memdist.distributed import strategy as strategy_
from memdist.errors import CheckpointError, ConfigError
from memdist.model import Sampling
from memdist.train.recipe import Recipe, combined
from memdist.train.restore import Restored

PLAIN_BATCH = 64
"""Maps at once of a model that does not sample."""
LARGEST_BATCH = 512
"""Maps at once, at most, where the batch is found by trying."""
GAIN = 0.03
"""Share of the time of a map that twice the batch must save to be worth it."""
PATIENCE = 3
"""Doublings in a row that do not pay, after which the search ends."""
HELD = 4096
"""Samples that are held at once, at most, however many are asked for of each picture."""
COMPILE_PAYS = 600.0
"""Seconds of eager sampling from which compiling the network, a minute or two, is worth it."""


class Mapper:
    """Maps of pictures by a restored model."""

    def __init__(
        self,
        found: Restored,
        recipe: Recipe,
        device: torch.device,
        precision: str,
        batch: int,
        *,
        compiled: bool = False,
    ) -> None:
        """Predict `batch` maps at once; `compiled` compiles the networks, when they are first used."""
        strategy_.check_precision(precision, device)
        self.found, self.recipe, self.device = found, recipe, device
        self.precision, self.batch, self.compiled = precision, batch, compiled
        for net in found.nets.values():
            if device.type == "cuda" or compiled:  # where it was measured to pay, as in training
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if compiled:
                net.compile(fullgraph=True, dynamic=False)

    def pictures(self, samples: int) -> int:
        """Pictures whose samples, so many of each, are held at once."""
        return max(1, min(self.batch, HELD // samples))

    @torch.inference_mode()
    def sample(self, image: Tensor, seeds: Tensor, sampling: Sampling | None = None) -> Tensor:
        """Sample maps [N, k, C, H, W] in [-1, 1] of pictures [N, C, H, W] by seeds int64 [N, k], all on the device."""
        model, nets = self.found.model, self.found.nets
        count, k = seeds.shape
        sampling = sampling or self.recipe.sampling
        flat, places = seeds.reshape(-1), torch.arange(count, device=self.device).repeat_interleave(k)
        made: list[Tensor] = []
        for start in range(0, len(flat), self.batch):
            # What is missing at the end is filled up from the start.
            chosen = torch.arange(start, start + self.batch, device=self.device) % len(flat)
            with self._autocast():
                maps = model.predict(nets, image[places[chosen]], flat[chosen], sampling)
            made.append(maps.float().clamp(-1, 1)[: len(flat) - start])
        return torch.cat(made).reshape(count, k, *made[0].shape[1:])

    def maps(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Maps [N, C, H, W]: what the recipe makes of k samples of each picture."""
        return combined(self.sample(image, seeds), self.recipe.combine)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)


def seeds(run_seed: int, hashes: Sequence[str], samples: int, device: torch.device) -> Tensor:
    """Seeds of the samples of pictures, by the hashes of their files: int64 [N, samples]."""
    rows = [[loader.picture_seed(run_seed, one, replicate) for replicate in range(samples)] for one in hashes]
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(hashes), samples)


def precision_of(run: Any) -> str:
    """Arithmetic in which a run predicts."""
    return str(run.precision if run.eval.precision == "run" else run.eval.precision)


@contextlib.contextmanager
def room(device: torch.device) -> Iterator[None]:
    """Tell in a sentence where a device has too little memory: a batch was found when it was emptier, or was given."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{name_of(device)} has too little memory now for the maps that are predicted at once: give a smaller eval.batch=N, "
            "or wait until the device is emptier"
        ) from error


def check(found: Restored, run: Any, strategy: strategy_.Strategy) -> None:
    """Raise a ConfigError for a precision or a compiler that is not to be had; all ranks call it."""
    device = strategy.device
    key = "precision" if run.eval.precision == "run" else "eval.precision"
    strategy_.check_precision(precision_of(run), device, key)
    if run.eval.compile != "always":
        return
    if "compile" in found.model.refuses():
        raise ConfigError(f"eval.compile=always cannot be: {found.model.refuses()['compile']}")
    if not strategy_.from_main(strategy, lambda: int(can_compile(device))):
        needed = {"cpu": "no C++ compiler (g++, or CXX)", "cuda": "no Triton"}.get(device.type, "nothing")
        raise ConfigError(
            f"eval.compile=always cannot be: torch.compile finds {needed} for {device.type}; give eval.compile=auto, or "
            "install it"
        )


def prepare(
    folder: Path,
    found: Restored,
    run: Any,
    recipe: Recipe,
    strategy: strategy_.Strategy,
    *,
    maps: int,
    evaluations: int | None = None,
) -> Mapper:
    """Find the batch and whether compiling pays, for so many maps of this process; all ranks call it, and have the same.

    `evaluations` are those of the network for a map, where they are not the recipe's.
    """
    device, precision = strategy.device, precision_of(run)
    check(found, run, strategy)
    trial = Mapper(found, recipe, device, precision, 1)
    wanted = run.eval.batch or (PLAIN_BATCH if not found.model.samples else None)
    if wanted is None:
        wanted = strategy_.from_main(strategy, lambda: _batch(folder, trial, maps))
    trial.batch = wanted = -(-maps // -(-maps // wanted))  # as many batches, of which the last is nearly full
    compiled = run.eval.compile == "always"
    if run.eval.compile == "auto" and found.model.samples and "compile" not in found.model.refuses():
        total = maps / wanted * (evaluations or found.model.evaluations(recipe.sampling))
        compiled = bool(strategy_.from_main(strategy, lambda: _pays(trial, total)))
    if compiled:
        cache_.keep_compiled(run.data.cache)
    return Mapper(found, recipe, device, precision, wanted, compiled=compiled)


def _pays(trial: Mapper, evaluations: float) -> int:
    """Whether so many evaluations of the network are worth compiling it, on a machine that can."""
    if not can_compile(trial.device):
        return 0
    return int(evaluations * seconds(trial, trial.batch) > COMPILE_PAYS)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: on a CPU a C++ compiler, on a GPU Triton."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, OSError):
            return False
        return True
    from torch.utils._triton import has_triton

    return device.type == "cuda" and has_triton()


def _batch(folder: Path, trial: Mapper, maps: int) -> int:
    """The batch that pays, remembered for this device; no larger than what there is to predict."""
    most = 2 ** math.ceil(math.log2(max(1, min(maps, LARGEST_BATCH))))
    where = f"{name_of(trial.device)}, {trial.precision}, {torch.get_num_threads()} threads"
    known: dict[str, Any] = {}
    with contextlib.suppress(CheckpointError):  # what is damaged is found and written anew
        known = rundir.read_json(folder / rundir.BATCHES)
    former = known.get(where)
    if isinstance(former, int) and 1 <= former <= LARGEST_BATCH:
        return min(former, most)
    found, free = find_batch(lambda batch: seconds(trial, batch), most, trial.device)
    if free:
        # A run that belongs to others is read all the same.
        with contextlib.suppress(CheckpointError):
            rundir.write_json(folder / rundir.BATCHES, {**known, where: found})
    return found


def find_batch(measure: Callable[[int], float], most: int, device: torch.device) -> tuple[int, bool]:
    """Largest batch up to `most` that still makes a map cheaper, and whether it was found rather than `most` reached.

    `measure` gives seconds of a batch, or raises torch.OutOfMemoryError. Doublings that do not pay are followed by more, as a
    busy machine may hide what they gain.
    """
    best, cost, idle, size = 1, math.inf, 0, 1
    while size <= most:
        before = _resident()
        try:
            each = measure(size) / size
        except torch.OutOfMemoryError:
            if device.type == "cuda":
                torch.cuda.empty_cache()
            return best, True
        if each < (1 - GAIN) * cost:
            best, cost, idle = size, each, 0
        else:
            idle += 1
        # On a CPU nothing is refused: the system would end the process.
        if idle == PATIENCE or (device.type == "cpu" and 4 * (_resident() - before) > loader.free_memory(device)):
            return best, True
        size *= 2
    return best, most == LARGEST_BATCH


def seconds(trial: Mapper, batch: int) -> float:
    """Seconds of one network evaluation of a batch: the best of a few after one that warms up, as others slow it at times."""
    found, device = trial.found, trial.device
    task = found.model.task
    image = torch.zeros(1, task.image_channels, task.size, task.size, device=device).expand(batch, -1, -1, -1)
    keys = torch.arange(batch, device=device)[:, None]
    former, trial.batch = trial.batch, batch
    taken: list[float] = []
    try:
        while len(taken) < 3 or (len(taken) < 8 and sum(taken[1:]) < 0.5):
            before = time.perf_counter()
            trial.sample(image, keys, Sampling(sampler="ddim", steps=1))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - before)
    finally:
        trial.batch = former
    return min(taken[1:])


def name_of(device: torch.device) -> str:
    """What a device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "mps"
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _resident() -> int:
    """Most memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
