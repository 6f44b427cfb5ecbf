"""The GPUs that a plan knows: memory, speed by precision, links. Figures of the makers' data sheets, rounded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from memdist.errors import ConfigError

_GIB = 2**30
_TERA = 10**12
_GIGA = 10**9


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of device."""

    name: str
    memory: int
    """Bytes that a program sees, before its own context: less than on the box (ECC, firmware); drivers differ a little."""
    flops: dict[str, float]
    """Dense operations a second of matrix products, by the precisions that it has; sums in fp32."""
    inside: float
    """Bytes a second and direction to the other GPUs of its machine: NVLink, or PCI Express."""
    network: float
    """Bytes a second and direction of a GPU's share of its machine's network."""
    host: float
    """Bytes a second and direction to the host's memory (PCI Express)."""
    marks: tuple[str, ...]
    """Words of the name that the driver gives it."""


def _gpu(
    name: str,
    memory: float,
    fp32: float,
    tf32: float,
    bf16: float,
    fp16: float,
    *,
    inside: float,
    gbits: float = 100,
    host: float = 25,
    marks: str,
) -> Gpu:
    """GiB, TFLOP/s (0: has it not), GB/s, Gbit/s, GB/s."""
    speeds = {"fp32": fp32, "tf32": tf32, "bf16": bf16, "fp16": fp16}
    return Gpu(
        name=name,
        memory=int(memory * _GIB),
        flops={precision: speed * _TERA for precision, speed in speeds.items() if speed},
        inside=inside * _GIGA,
        network=gbits / 8 * _GIGA,
        host=host * _GIGA,
        marks=tuple(marks.split()),
    )


# 400 Gbit/s a GPU is what DGX H100 and its like have (8 x ConnectX-7); others: 100, as many clusters.
# GeForce cards talk to one another through the host's memory.
CATALOGUE = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40g", 39.4, 19.5, 156, 312, 312, inside=300, marks="A100 40GB"),
        _gpu("a100-80g", 79.1, 19.5, 156, 312, 312, inside=300, marks="A100 80GB"),
        _gpu("h100-80g", 79.1, 66.9, 494, 989, 989, inside=450, gbits=400, host=50, marks="H100"),
        _gpu("h200-141g", 139.8, 66.9, 494, 989, 989, inside=450, gbits=400, host=50, marks="H200"),
        _gpu("b200-192g", 178.3, 80, 1125, 2250, 2250, inside=900, gbits=400, host=50, marks="B200"),
        _gpu("l40s-48g", 44.4, 91.6, 183, 362, 362, inside=25, marks="L40S"),
        _gpu("l4-24g", 22.0, 30.3, 60, 121, 121, inside=25, marks="L4"),
        _gpu("v100-16g", 15.7, 15.7, 0, 0, 125, inside=150, host=12, marks="V100 16GB"),
        _gpu("v100-32g", 31.7, 15.7, 0, 0, 125, inside=150, host=12, marks="V100 32GB"),
        _gpu("rtx3090-24g", 23.6, 35.6, 35.6, 71, 71, inside=10, marks="RTX 3090"),
        _gpu("rtx4090-24g", 23.5, 82.6, 82.6, 165, 165, inside=10, marks="RTX 4090"),
        _gpu("t4-16g", 14.6, 8.1, 0, 0, 65, inside=10, host=12, marks="T4"),
    )
}

HERE = "here"
"""Name of this machine's own device."""


def find(name: str) -> Gpu:
    """A GPU by its name; a ConfigError names the nearest one."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = difflib.get_close_matches(name.lower(), CATALOGUE, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}?" if near else "choose one of them"
    raise ConfigError(f"there is no GPU {name!r}; there are {', '.join([*CATALOGUE, HERE])}: {hint}")


def check_precision(gpu: Gpu, precision: str) -> None:
    """Raise a ConfigError for a precision that the GPU does not have."""
    if precision not in gpu.flops:
        has = list(gpu.flops)
        raise ConfigError(
            f"precision = {precision!r} cannot run on {gpu.name}, which has {' and '.join(has)}: use precision={has[-1]}, or "
            "another --gpu"
        )


def is_here(gpu: Gpu) -> bool:
    """Whether this machine has a GPU of that kind, by its name and memory."""
    import torch

    if not torch.cuda.is_available():
        return False
    words = torch.cuda.get_device_name().replace("-", " ").split()
    kind = all(mark in words for mark in gpu.marks if not mark.endswith("GB"))
    return kind and abs(torch.cuda.get_device_properties(0).total_memory / gpu.memory - 1) < 0.1


def here(device: str, ranks: int) -> Gpu:
    """This machine's device, `cuda` or `cpu`; of a host's memory each of the ranks has its share.

    A GPU that the catalogue knows keeps its links and speeds; of another, and of a CPU, the lowest figures of it stand for them.
    """
    import torch

    if device == "cuda":
        known = next((gpu for gpu in CATALOGUE.values() if is_here(gpu)), None)
        if known is not None:
            return known
        properties = torch.cuda.get_device_properties(0)
        slow = CATALOGUE["t4-16g"]
        speeds = dict.fromkeys(("fp32", "tf32", "bf16", "fp16"), slow.flops["fp32"])
        return Gpu(
            name=properties.name,
            memory=properties.total_memory,
            flops=speeds,
            inside=slow.inside,
            network=slow.network,
            host=slow.host,
            marks=(),
        )
    import os

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    speeds = {"fp32": 0.1 * _TERA, "tf32": 0.1 * _TERA, "bf16": 0.1 * _TERA}
    return Gpu(name="cpu", memory=memory // ranks, flops=speeds, inside=_GIGA, network=_GIGA, host=10 * _GIGA, marks=())
