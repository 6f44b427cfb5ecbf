"""A plan as a terminal's tables, no wider than 100 columns, with every assumption below them."""

from __future__ import annotations

import textwrap
from typing import Any

from memdist.plan import traffic
from memdist.plan.estimate import GIB, RESERVE, Plan, Row
from memdist.plan.timing import UTILISATION

WIDTH = 100
"""Columns of a terminal in which all is readable."""
_PARTS = ("weights", "gradients", "optimiser", "averages", "passing", "activations")


def render(plan: Plan) -> Any:
    """Everything that `memdist plan` prints."""
    from rich.console import Group
    from rich.text import Text

    tables = [_memory(plan), _time(plan)]
    words = [*_refusals(plan), advice(plan), *_assumptions(plan)]
    return Group(*tables, *(Text(textwrap.fill(word, WIDTH, break_on_hyphens=False)) for word in words))


def _device(plan: Plan) -> str:
    return "process" if plan.gpu.name == "cpu" else "GPU"


def _memory(plan: Plan) -> Any:
    from rich.table import Table

    table = Table(
        title=f"GiB a {_device(plan)} ({plan.gpu.name}, {plan.free / GIB:.1f} of {plan.gpu.memory / GIB:.1f} can be used), "
        f"micro-batches of {plan.micro}"
    )
    for name in ("strategy", "weights", "grads", "optim", "ema", "passing", "activ.", "all", "fits", "largest"):
        table.add_column(name, justify="left" if name == "strategy" else "right", no_wrap=True)
    for row in plan.rows:
        if row.refused:
            table.add_row(row.choice.name, *["-"] * 7, "refused", "-")
            continue
        parts = [f"{getattr(row.memory, part) / GIB:.2f}" for part in _PARTS]
        total, largest = f"{row.memory.total / GIB:.2f}", str(row.largest or "none")
        table.add_row(row.choice.name, *parts, total, "yes" if row.fits else "no", largest)
    return table


def _time(plan: Plan) -> Any:
    from rich.table import Table

    steps = f"the run's {plan.steps}" if plan.steps else "1000 (no data are given)"
    table = Table(
        title=f"a step of {plan.run.batch.size} pictures on {plan.world} x {plan.gpu.name}; hours of {steps} steps"
    )
    for name in ("strategy", "batch.micro", "sent GiB", "compute s", "wait s", "efficiency", "hours", "GPU-hours"):
        table.add_column(name, justify="left" if name == "strategy" else "right", no_wrap=True)
    for row in plan.rows:
        table.add_row(row.choice.name, *(_figures(plan, row) if row.micro else ["-"] * 7))
    return table


def _figures(plan: Plan, row: Row) -> list[str]:
    hours = row.seconds * (plan.steps or 1000) / 3600
    micro = f"{row.micro}" + (f" x {row.accumulations}" if row.accumulations > 1 else "")
    return [
        micro,
        f"{row.exchange.sent / GIB:.2f}",
        f"{row.compute:.3g}",
        f"{row.exchange.exposed:.2g}",
        f"{100 * row.efficiency:.0f} %",
        f"{hours:.3g}",
        f"{hours * plan.world:.3g}",
    ]


def _refusals(plan: Plan) -> list[str]:
    return [f"{plan.run.model.name} cannot run with {r.choice.name}: {r.refused}" for r in plan.rows if r.refused]


def settings(plan: Plan, row: Row) -> str:
    """What to write behind `memdist train CONFIG` for a row."""
    return f"{row.choice.settings} batch.micro={row.micro}"


def advice(plan: Plan) -> str:
    """What to do, in a sentence."""
    row = plan.advice
    if row is None:
        return (
            "Nothing fits, not even one picture at a time with blocks that are computed again: use larger GPUs, smaller "
            "pictures (data.size) or a smaller network"
        )
    host = f", and {row.memory.host / GIB:.1f} GiB of the host's memory" if row.memory.host else ""
    times = f" in {row.accumulations} micro-batches a step" if row.accumulations > 1 else ""
    return f"Use {settings(plan, row)}: the simplest that fits{times}{host}."


def _assumptions(plan: Plan) -> list[str]:
    fixed, part = RESERVE["cpu" if plan.gpu.name == "cpu" else "cuda"]
    lines = [
        f"Assumed: {fixed / GIB:.1f} GiB and {100 * part:.0f} % of the memory stay free (context, buffers of communication, "
        "workspaces of kernels, which cannot be known beforehand); training steps count, validation does not.",
    ]
    if plan.run.compile:
        lines.append("Assumed: compiled networks keep as much for backward as others; they may keep less.")
    if plan.timed:
        lines.append("Measured: the seconds of computing, on this machine's device.")
    else:
        lines.append(
            f"Assumed: {100 * UTILISATION:.0f} % of {plan.gpu.flops[plan.run.precision] / 1e12:.0f} TFLOP/s in "
            f"{plan.run.precision}; plan where such a GPU is, and a step is timed instead."
        )
    if plan.gpu.name == "cpu":
        lines.append("Assumed: the processes share this machine's cores, and send 0.8 GB/s.")
    elif plan.world > 1:
        lines.append(
            f"Assumed: {plan.box} GPUs a machine; {plan.gpu.inside / 1e9:.0f} GB/s between them and {plan.gpu.network / 1e9:.1f} "
            f"GB/s a GPU between machines, {100 * traffic.REACHED:.0f} % of it reached, {traffic.ALPHA_INSIDE * 1e6:.0f} and "
            f"{traffic.ALPHA_NETWORK * 1e6:.0f} microseconds a message; backward hides what fits into it."
        )
    return lines
