"""What is made of the seconds that ranks took, and how many ranks there are."""

import io
from typing import Any

import pytest
from rich.console import Console

from memdist.bench import scale, scaletable
from memdist.bench.scaletable import Row
from memdist.errors import ConfigError
from memdist.launch import gpus

FOUND: dict[str, Any] = {
    "seconds": {"16": 0.05},
    "memory": 3 * 2**30,
    "operations": 4e12,
    "peak": 1e15,
    "model": "unet",
    "size": 64,
    "batch": 16,
    "precision": "bf16",
    "strategy": "fsdp",
    "device": "cuda",
    "machine": "NVIDIA H100",
    "threads": 4,
    "precisions": ["fp32"],
    "world": 2,
}


def _shown(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_efficiencies() -> None:
    # Twice as many ranks: half the time for the same batch, the same time for twice the batch.
    assert scaletable.strong(2, [1.0, 1.2], [0.5, 0.6]) == pytest.approx(1)
    assert scaletable.weak(2, [1.0, 1.2], [1.0, 1.2]) == pytest.approx(1)
    assert scaletable.strong(4, [1.0], [0.5]) == pytest.approx(0.5)
    assert scaletable.weak(4, [1.0], [1.25]) == pytest.approx(0.8)


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine was three times as slow for one of the pairs.
    assert scaletable.ratio([1.0, 3.3, 1.2], [1.0, 3.0, 1.0]) == pytest.approx(1.1)


def test_mfu() -> None:
    assert scaletable.mfu(4e12, 1e15, 0.01) == pytest.approx(0.4)
    assert scaletable.mfu(None, 1e15, 0.01) is None
    assert scaletable.mfu(4e12, None, 0.01) is None


@pytest.mark.parametrize(
    ("ranks", "batch", "worlds"),
    [(2, 16, [1, 2]), (8, 16, [1, 2, 4, 8]), (6, 12, [1, 2, 4, 6]), (3, 9, [1, 3]), (6, 6, [1, 2, 6])],
)
def test_worlds_of_scaling(ranks: int, batch: int, worlds: list[int]) -> None:
    assert scale.sizes(ranks, batch) == worlds


@pytest.mark.parametrize(
    ("there", "batch", "least", "ranks"),
    [(8, 16, 1, 8), (6, 16, 1, 4), (1, 16, 1, 1), (64, 16, 2, 16), (3, 9, 2, 3), (2, 9, 2, 2), (5, None, 2, 5)],
)
def test_ranks_by_default(there: int, batch: int | None, least: int, ranks: int) -> None:
    assert scale.most(there, batch, least=least) == ranks


def test_a_line_against_the_bare_loop_says_the_speed() -> None:
    line = scaletable.against([0.050, 0.052], [0.049, 0.051])
    assert "0.9804 of its speed (median of 2 pairs" in line and "51.00 ms and 50.00 ms a step" in line


def test_a_line_of_scaling() -> None:
    line = scaletable.scaling("strong scaling", {1: [0.1, 0.1], 2: [0.0625, 0.0625]}, scaletable.strong)
    assert line == "strong scaling: 1 rank 100.00 ms a step; 2 ranks 62.50 ms a step, efficiency 0.800"


def test_the_table_of_a_gpu_fits_into_100_columns() -> None:
    rows = [scaletable.row("ddp", "bf16", FOUND), Row("deepspeed 3", "bf16", why="it cannot be " * 20)]
    text = _shown(scaletable.table(rows, 2, gpu=True))
    assert all(part in text for part in ("50.00", "320.0", "8.0 %", "3.00 GiB", "why not", "it cannot be"))
    assert max(len(line) for line in text.splitlines()) <= 100 and "no MFU" not in text
    unknown = scaletable.row("ddp", "bf16", FOUND | {"peak": None})
    assert "no MFU" in _shown(scaletable.table([unknown], 2, gpu=True))


def test_a_launchers_ranks_have_lines_of_their_own() -> None:
    text = scaletable.of_one(FOUND)
    assert "on 2 CUDA ranks (NVIDIA H100)" in text and "strategy=fsdp, precision=bf16: 50.00 ms a step" in text
    assert "of its speed" not in text
    assert "of its speed" in scaletable.of_one(FOUND | {"ours": [1.0], "theirs": [1.0]})


@pytest.mark.parametrize(
    ("overrides", "ranks", "sentence"),
    [
        (["precision=bf16"], 2, "precision = 'bf16' cannot be measured"),
        (["device=cuda"], 2, "--gpus 2 cannot be: this machine has 1 GPU "),
        ([], 4, "--gpus 4 cannot be: this machine has 1 GPU "),
        (["device=cuda:0"], 2, "which is one device"),
    ],
)
def test_what_cannot_be_is_said_before_a_rank_starts(
    overrides: list[str], ranks: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "count", lambda: 1)
    monkeypatch.setattr("memdist.launch.local.run", None)
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        scale.main("quick/unet", overrides, ranks=ranks, steps=1)


def test_a_launchers_ranks_start_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for key, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match="this process is one already"):
        scale.main("quick/unet", [], ranks=2, steps=1)
