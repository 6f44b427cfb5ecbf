"""Every strategy trains the same run at every number of ranks, and takes up the checkpoints of every other."""

import json
from pathlib import Path
from typing import Any

import pytest

from memdist import rundir
from tests.distributed import matrix, worlds
from tests.distributed.matrix import MODELS, MODES, PLAIN, TWO, name

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    worlds.job(folder, 4, "tests.distributed.matrix")
    return folder


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moving")
    worlds.job(folder, 3, "tests.distributed.matrix")
    return folder


def told(folder: Path, label: str, rank: int = 0) -> Any:
    return json.loads((folder / f"{label}-{rank}.json").read_text())


def lines(out: Path, first: int = 0) -> list[dict[str, float]]:
    """Lines of training losses from a step on, without norms."""
    read = (line for line in rundir.read_lines(out / rundir.METRICS) if not any(key.startswith("val/") for key in line))
    kept = [line for line in read if line["step"] > first]
    return [{key: value for key, value in line.items() if "_norm/" not in key} for line in kept]


def alike(ours: list[dict[str, float]], theirs: list[dict[str, float]], rel: float = 1e-5) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=rel, abs=1e-7)


@pytest.mark.parametrize("world", ["ddp", 4])
@pytest.mark.parametrize("model", MODELS)
def test_ranks_and_micro_batches_change_nothing(model: str, world: object, exact: Path) -> None:
    for label in (name(model, 1), name(model, world)):
        assert told(exact, label)["step"] == 20
    alike(lines(exact / "runs" / name(model, world)), lines(exact / "runs" / name(model, 1)))


@pytest.mark.parametrize("way", ["ddp", *TWO])
@pytest.mark.parametrize("model", MODELS)
def test_validation_is_the_same_by_every_strategy(model: str, way: str, exact: Path) -> None:
    ours, theirs = (
        [line for line in rundir.read_lines(exact / "runs" / name(model, of) / rundir.METRICS) if "val/l1" in line]
        for of in (way, 1)
    )
    assert len(ours) == len(theirs) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("way", TWO)
@pytest.mark.parametrize("model", MODELS)
def test_strategies_change_nothing(model: str, way: str, exact: Path) -> None:
    assert told(exact, name(model, way))["step"] == 20
    alike(lines(exact / "runs" / name(model, way)), lines(exact / "runs" / name(model, 1)))


@pytest.mark.parametrize(("mode", "way"), [(mode, way) for mode, (_, _, ways) in MODES.items() for way in ways])
def test_modes_are_alike_in_every_strategy(mode: str, way: str, exact: Path) -> None:
    ways = MODES[mode][2]
    assert told(exact, name(mode, way))["step"] == 20
    # Half precision, and two differentiations, make more of rounding.
    rel = 1e-5 if mode in PLAIN else 1e-3 if "16" in mode else 1e-4
    alike(lines(exact / "runs" / name(mode, way)), lines(exact / "runs" / name(mode, ways[0])), rel)
    if mode in PLAIN:
        plain = lines(exact / "runs" / name(PLAIN[mode], "ddp"))
        shared = [
            {k: v for k, v in line.items() if "spread" not in k} for line in lines(exact / "runs" / name(mode, way))
        ]
        plain = [{k: v for k, v in line.items() if "spread" not in k} for line in plain]
        alike(shared, plain)


@pytest.mark.parametrize("way", TWO)
def test_what_goes_back_to_the_start_begins_with_its_weights(way: str, exact: Path) -> None:
    ours, theirs = (
        [line for line in lines(exact / "runs" / name("back", of)) if "rollback" not in line] for of in (way, "ddp")
    )
    assert told(exact, name("back", way))["step"] == 3
    alike(ours, theirs)


@pytest.mark.parametrize("label", ["fsdp-alone", "zero-alone"])
def test_a_strategy_works_on_one_rank(label: str, exact: Path) -> None:
    assert told(exact, label)["step"] == 20
    alike(lines(exact / "runs" / label), lines(exact / "runs" / name("palette", 1)))


@pytest.mark.parametrize(
    ("variant", "a", "b"), matrix.moves(), ids=lambda value: name(*value) if isinstance(value, tuple) else value
)
def test_a_checkpoint_moves(variant: str, a: tuple[str, int], b: tuple[str, int], moving: Path) -> None:
    label = name(variant, *a, *b)
    for rank in range(b[1]):
        assert told(moving, name("to", label), rank)["step"] == matrix.LAST
        # Not a bit is lost on the way in and out.
        found = told(moving, name("again", label), rank)
        assert found["was"] == found["is"]
    ours, whole = (lines(moving / place, matrix.SAVED) for place in (f"to/{label}", f"whole/{name(variant)}"))
    assert len(ours) == matrix.LAST - matrix.SAVED
    if "batch" in variant:  # statistics are those of micro-batches
        return
    alike(ours, whole)


def test_dropout_goes_on_where_it_stood(moving: Path) -> None:
    for label in ("dropout-stopped-6", "dropout-stopped-12", "dropout-whole"):
        told(moving, label)
    ours, whole = ((moving / "runs" / place / rundir.METRICS).read_bytes() for place in ("stopped", "dropout"))
    assert ours == whole
