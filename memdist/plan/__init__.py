"""What a run would take on other machines, before anybody pays for them: memory, communication, hours."""

from __future__ import annotations

from typing import Any


def warning(run: Any, world: int, device_memory: int) -> str | None:
    """A sentence for a run that will not fit on `world` ranks with `device_memory` bytes each; None where it fits.

    Of GPUs that is all that a program sees; of a CPU the host's memory, divided by the ranks that share it.
    """
    from memdist.plan import estimate

    return estimate.warning(run, world, device_memory)


def beforehand(run: Any, device: Any) -> str | None:
    """A sentence for a run that will not fit on the ranks that were started and the (torch) `device` of this one, or None.

    One process on a CPU is not looked at: it may swap, and disturbs nobody's job.
    """
    import os

    from memdist.launch import place

    here = place.read(os.environ)
    if device.type == "cuda":
        import torch

        memory = torch.cuda.mem_get_info(device)[0]  # what other processes have left
    elif device.type == "cpu" and here.world > 1:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // here.locals
    else:
        return None
    return warning(run, here.world, memory)
