"""What the watch makes of losses and gradients, row by row, against what the rules say."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memdist.config import Divergence
from memdist.distributed.single import Single
from memdist.distributed.strategy import Stepped
from memdist.model import Floor, Loss
from memdist.train.watch import FULL, HORIZON, SKIPPED, Diverged, Verdict, Watch

CPU = Single(torch.device("cpu"), "fp32")
FLOOR = Floor(net="net", log="low", below=0.1, sentence="it is too low")
SHARE = Floor(net="net", log="low", below=0.1, of="high", sentence="it is too low beside the other")


class Two(Single):
    """Two ranks in one process, of which the other has a loss of its own."""

    world = 2

    def __init__(self, difference: float) -> None:
        super().__init__(torch.device("cpu"), "fp32")
        self.difference = difference

    def gather(self, values: Tensor) -> Tensor:
        return torch.cat((values, values + self.difference))


def scalar(value: float) -> Tensor:
    return torch.tensor(float(value))


def step(
    watch: Watch,
    number: int,
    *,
    loss: float = 1.0,
    norm: float = 1.0,
    taken: float | None = None,
    micros: int = 1,
    **logs: float,
) -> None:
    for _ in range(micros):
        watch.add("net", Loss(scalar(loss), {name: scalar(value) for name, value in logs.items()}))
    watch.stepped("net", Stepped(scalar(norm), None if taken is None else scalar(taken)))
    watch.close(number)


def verdict(watch: Watch, strategy: Single = CPU) -> Verdict:
    with pytest.raises(Diverged) as found:
        watch.fold(strategy)
    return found.value.verdict


def make(floors: Sequence[Floor] = (), **settings: Any) -> Watch:
    return Watch(Divergence(**settings), floors)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_loss_that_is_no_number_is_named(value: float) -> None:
    watch = make()
    step(watch, 1, l1=0.5)
    step(watch, 2, l1=value)
    step(watch, 3, loss=math.nan, norm=math.nan, l1=math.nan)
    found = verdict(watch)
    assert found.what == f"train/l1 is {value} at step 2"
    assert (found.net, found.step, found.since, found.setting) == ("net", 2, 2, None)


def test_a_loss_that_is_not_logged_counts_as_well() -> None:
    watch = make()
    step(watch, 1, loss=math.inf, l1=0.5)
    assert verdict(watch).what == "the loss of net is inf at step 1"


def test_one_micro_batch_of_one_rank_is_enough() -> None:
    watch = make()
    step(watch, 1, l1=0.5, micros=3)
    step(watch, 2, l1=0.5, micros=3)
    assert verdict(watch, Two(math.nan)).what == "train/l1 is nan at step 1"


def test_a_gradient_that_is_no_number_counts() -> None:
    watch = make(gradient=None)
    step(watch, 7, norm=math.inf)
    assert verdict(watch).what == "the gradient norm of net is inf at step 7"


def test_an_explosion_is_many_times_the_geometric_mean() -> None:
    watch = make(gradient=100, warmup=4)
    for number, norm in enumerate((1, 4, 1, 4), 1):  # geometric mean 2
        step(watch, number, norm=norm)
    watch.fold(CPU)
    step(watch, 5, norm=199)
    watch.fold(CPU)
    assert make(gradient=None)._settings.gradient is None
    other = make(gradient=100, warmup=4)
    for number, norm in enumerate((1, 4, 1, 4, 201), 1):
        step(other, number, norm=norm)
    found = verdict(other)
    assert found.what == "the gradient norm of net is 201 at step 5, where 2 is usual"
    assert found.setting == "divergence.gradient"


@pytest.mark.parametrize(("settings", "last"), [({"gradient": None}, 9), ({"warmup": 9}, 9)])
def test_no_explosion_within_the_warm_up_or_where_none_is_wanted(settings: dict[str, Any], last: int) -> None:
    watch = make(**{"warmup": 0, **settings})
    for number in range(1, last):
        step(watch, number, norm=1e-3)
    step(watch, last, norm=1e6)
    watch.fold(CPU)


def test_without_a_warm_up_the_second_step_is_judged() -> None:
    watch = make(warmup=0, gradient=10)
    step(watch, 1, norm=1e6)
    watch.fold(CPU)
    step(watch, 2, norm=1.1e7)
    assert verdict(watch).step == 2


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_small_gradients_are_usual_where_all_are_small(warmup: int) -> None:
    watch = make(warmup=warmup, gradient=10)
    for number in range(1, 50):
        step(watch, number, norm=1e-4)
    watch.fold(CPU)
    step(watch, 50, norm=1e-2)
    assert verdict(watch).what == "the gradient norm of net is 0.01 at step 50, where 0.0001 is usual"


def test_what_was_usual_once_is_no_explosion_later() -> None:
    watch = make(warmup=2, gradient=10)
    for number in range(1, 2000):
        step(watch, number, norm=1.0 if number < 500 else 1e-6)
    step(watch, 2000, norm=1.0)
    watch.fold(CPU)


def test_the_running_mean_forgets() -> None:
    watch = make()
    for number in range(1, 20 * HORIZON):
        step(watch, number, norm=1e-3 if number < 10 * HORIZON else 1.0)
    watch.fold(CPU)
    assert watch.state()["usual"]["net"]["mean"] == pytest.approx(0, abs=1e-3)


def test_a_gradient_of_zero_is_no_geometric_mean() -> None:
    watch = make(warmup=1, gradient=10)
    for number, norm in enumerate((0, 1, 0, 1), 1):
        step(watch, number, norm=norm)
    watch.fold(CPU)
    assert watch.state()["usual"]["net"]["count"] == 2
    assert watch.norms() == {"grad_norm/net": 0.5}


# fp16


def test_an_overflow_is_no_divergence() -> None:
    watch = make(warmup=1)
    for number in range(1, 3 * SKIPPED):
        bad = number % 3 > 0
        step(
            watch,
            number,
            loss=math.inf if bad else 1,
            norm=math.inf if bad else 2,
            taken=not bad,
            l1=math.nan if bad else 1,
        )
    watch.fold(CPU)
    assert watch.norms() == {"grad_norm/net": 2.0}


def test_nothing_but_overflows_is_one() -> None:
    watch = make()
    for number in range(1, SKIPPED + 1):
        step(watch, number, loss=math.nan, norm=math.inf, taken=0)
    assert verdict(watch).what == f"every step of net has overflowed fp16 for {SKIPPED} steps, up to step {SKIPPED}"


def test_a_step_that_was_taken_under_fp16_is_judged() -> None:
    watch = make()
    step(watch, 1, loss=math.nan, taken=1)
    assert verdict(watch).what == "the loss of net is nan at step 1"


# Collapse


def test_a_collapse_is_so_many_steps_in_a_row() -> None:
    watch = make([FLOOR], collapse_steps=5)
    for number, low in enumerate((0.05, 0.05, 0.05, 0.05, 0.2, 0.05, 0.05, 0.05, 0.05), 1):
        step(watch, number, low=low)
    watch.fold(CPU)
    assert not watch.calm
    step(watch, 10, low=0.05)
    found = verdict(watch)
    assert found.what == "it is too low: train/low has been below 0.1 for 5 steps, since step 6"
    assert (found.step, found.since, found.setting) == (10, 6, "divergence.collapse_steps")


def test_a_share_is_one_of_what_is_logged_beside_it() -> None:
    watch = make([SHARE], collapse_steps=2)
    for number, (low, high) in enumerate(((0.0, 0.0), (0.0, 0.0), (0.5, 5.0), (0.5, 4.0)), 1):
        step(watch, number, low=low, high=high)
    watch.fold(CPU)
    assert watch.calm
    for number in (5, 6):
        step(watch, number, low=0.5, high=6.0)
    assert "below 0.6 for 2 steps" in verdict(watch).what


def test_a_step_that_does_not_log_it_says_nothing_of_it() -> None:
    watch = make([FLOOR], collapse_steps=10)
    for number in range(1, 10):
        logged: dict[str, Any] = {"low": 0.0} if number % 4 == 1 else {}
        step(watch, number, **logged)
    watch.fold(CPU)
    step(watch, 13, low=0.0)
    assert verdict(watch).since == 1


def test_a_collapse_that_nobody_wants_to_hear_of() -> None:
    watch = make([FLOOR], collapse_steps=None)
    for number in range(1, 50):
        step(watch, number, low=0.0)
    watch.fold(CPU)
    assert watch.calm


# What it keeps


def row(watch: Watch, number: int) -> None:
    step(watch, number, norm=1 + number % 7 / 3, low=0.0 if number > 20 else 1.0)


def test_when_it_is_looked_at_changes_nothing() -> None:
    often, seldom = make([FLOOR]), make([FLOOR])
    for number in range(1, 40):
        row(often, number)
        often.fold(CPU)
        row(seldom, number)
    seldom.fold(CPU)
    assert often.state() == seldom.state()
    assert often.norms() == seldom.norms()


def test_a_watch_that_was_kept_goes_on_as_if_it_had_not_been() -> None:
    whole = make([FLOOR], collapse_steps=30)
    for number in range(1, 30):
        row(whole, number)
    whole.fold(CPU)
    kept = make([FLOOR], collapse_steps=30)
    kept.load(json.loads(json.dumps(whole.state())))
    # Another number of ranks is none to it.
    for number in range(30, 50):
        row(whole, number)
        row(kept, number)
    whole.fold(CPU)
    kept.fold(Two(0.0))
    assert whole.state() == kept.state()
    for watch in (whole, kept):
        row(watch, 50)
    assert verdict(whole) == verdict(kept)


def test_it_does_not_grow_without_end() -> None:
    watch = make()
    for number in range(1, FULL + 1):
        assert not watch.full
        step(watch, number)
    assert watch.full
    watch.fold(CPU)
    assert not watch.full


# Weights


def test_norms_of_weights_are_what_they_are_called() -> None:
    line = nn.Linear(2, 1)
    nets = {"a": line, "b": nn.BatchNorm1d(2)}
    with torch.no_grad():
        line.weight.copy_(torch.tensor([[3.0, 0.0]]))
        line.bias.fill_(4.0)
    assert make().look(nets, CPU, 1) == pytest.approx({"a": 5.0, "b": math.sqrt(2)})
    assert make().sound(nets, CPU)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["weight", "running_var"])
def test_weights_and_running_statistics_must_be_finite(value: float, place: str) -> None:
    nets = {"a": nn.Linear(2, 1), "b": nn.BatchNorm1d(2)}
    with torch.no_grad():
        getattr(nets["b"], place)[0] = value
    assert not make().sound(nets, CPU)
    with pytest.raises(Diverged) as found:
        make().look(nets, CPU, 9)
    assert found.value.verdict.what == "the weights of b are no longer finite at step 9"


# Maps of validation

MAPS = Floor(net="net", log="low", below=0.1, sentence="it is one map", maps=True)


def validated(watch: Watch, step_: int, predicted: float) -> Verdict | None:
    try:
        watch.validated(predicted, 1.0, step_)
    except Diverged as found:
        return found.verdict
    return None


def test_validation_judges_where_steps_log_nothing() -> None:
    watch = make([MAPS], collapse_steps=10)
    for number in range(1, 31):
        step(watch, number)
    watch.fold(CPU)
    assert validated(watch, 10, 0.05) is None and not watch.calm
    assert validated(watch, 15, 0.2) is None and watch.calm
    assert validated(watch, 20, 0.05) is None
    found = validated(watch, 29, 0.05)
    assert found is not None and (found.since, found.step, found.net) == (20, 29, "net")
    assert "it is one map: the maps predicted in validation have differed by less than 0.1 for 10 steps" in found.what


def test_validation_leaves_to_steps_what_they_log_now_and_then() -> None:
    """A generator that moves in every fifth step: an epoch that ends on another one says nothing of it."""
    watch, again = make([MAPS], collapse_steps=50), make([MAPS], collapse_steps=50)
    for number in range(1, 60):
        if number % 5 == 0:
            watch.add("net", Loss(scalar(1.0), {"low": scalar(0.0)}))
        watch.add("critic", Loss(scalar(1.0), {}))
        watch.close(number)
        if number % 32 == 0:
            watch.fold(CPU)
            assert validated(watch, number, 1.0) is None
            again.load(json.loads(json.dumps(watch.state())))
            assert again.state() == watch.state() and not again.calm
    assert verdict(watch).since == 5


def test_validation_judges_again_once_steps_log_no_more() -> None:
    watch = make([MAPS], collapse_steps=5)
    step(watch, 1, low=1.0)
    watch.fold(CPU)
    assert validated(watch, 1, 0.0) is None and watch.calm
    step(watch, 2)  # micro-batches of one picture from now on
    watch.fold(CPU)
    assert validated(watch, 2, 0.0) is None and not watch.calm
