"""What a run would take on other machines, before anybody pays for them: memory, communication, hours."""

from __future__ import annotations

from typing import Any


def warning(run: Any, world: int, device_memory: int) -> str | None:
    """A sentence for a run that will not fit on `world` ranks with `device_memory` bytes each; None where it fits.

    Of GPUs that is all that a program sees; of a CPU the host's memory, divided by the ranks that share it.
    """
    from memdist.plan import estimate

    return estimate.warning(run, world, device_memory)
