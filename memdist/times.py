"""Lengths of time as people and Slurm write them."""

from __future__ import annotations

import re

from memdist.errors import ConfigError

_ALLOWED = "it is such as 8h, 90m, 2d12h, or as Slurm writes it: minutes, 8:00:00, 1-12 or 1-12:30:00"


def seconds(text: str, what: str = "--time") -> int:
    """Seconds of `8h`, `2d12h`, or of Slurm's forms M, M:S, H:M:S, D-H, D-H:M and D-H:M:S.

    Raises a ConfigError that begins with `what` for any other text, and for nothing at all.
    """
    found = _words(text) or _slurm(text)
    if not found:
        raise ConfigError(f"{what} {text!r} cannot be: {_ALLOWED}")
    return found


def _words(text: str) -> int:
    parts = re.fullmatch(
        r"(?:([0-9]{1,5})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,7})m(?:in)?)?(?:([0-9]{1,9})s)?", text.strip().lower()
    )
    if parts is None:
        return 0
    return sum(int(number or 0) * unit for number, unit in zip(parts.groups(), (86400, 3600, 60, 1), strict=True))


def _slurm(text: str) -> int:
    found = re.fullmatch(r"(?:([0-9]{1,5})-)?([0-9]{1,7})(?::([0-9]{1,2}))?(?::([0-9]{1,2}))?", text.strip())
    if found is None:
        return 0
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is not None:  # hours come first
        hours, minutes, last = (*numbers, 0, 0)[:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + last
    if len(numbers) == 3:
        return numbers[0] * 3600 + numbers[1] * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)


def limit(text: str) -> int | None:
    """Seconds of a limit that Slurm tells; None where there is none, or none that can be read."""
    return None if text.strip().lower() in ("infinite", "unlimited", "n/a", "") else _slurm(text) or None


def slurm(length: int) -> str:
    """Seconds as Slurm reads them: D-HH:MM:SS, or HH:MM:SS below a day."""
    minutes, rest = divmod(length, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{rest:02}" if days else f"{hours:02}:{minutes:02}:{rest:02}"


def shown(length: float) -> str:
    """Seconds as people read them: 2d 12h, 8h, 90m, 45s."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if length >= 2 * size or length == size:
            whole, rest = divmod(int(length), size)
            below = {"d": ("h", 3600), "h": ("m", 60)}.get(unit)
            more = f" {rest // below[1]}{below[0]}" if below and rest // below[1] else ""
            return f"{whole}{unit}{more}"
    return f"{int(length)}s"
