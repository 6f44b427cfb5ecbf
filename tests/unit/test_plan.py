"""Plans: formulas of communication, what fits, what is said, what is refused, files for other tools."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from memdist import cli, models, plan
from memdist.errors import ConfigError, MemdistError
from memdist.plan import emit, estimate, gpus, table, timing, traffic
from memdist.plan.estimate import Choice, Planner
from memdist.train import loop, start
from memdist.train.footprint import Footprint, Pass, Size
from tests import tiny

GPU = gpus.CATALOGUE["h100-80g"]
P = 10**8
SIZE = Size(weights=P, buffers=0, moments=2, averaged=True, scratch=0, units=(P // 2, P // 2))
PASS = Pass(net="a", every=1, activations=0, joint=0, flops=1, calls={"a": 1})
WAYS = ["ddp", "fsdp", "deepspeed 1", "deepspeed 2", "deepspeed 3"]


def run(variant: str = "unet", **more: Any) -> Any:
    raw = copy.deepcopy(tiny.VARIANTS[variant]) | {"data": {"size": 16}, "device": "cpu", "batch": {"size": 8}}
    return models.resolve(raw | more)


def made(world: int = 2, gpu: str = "h100-80g", **more: Any) -> estimate.Plan:
    return estimate.plan(run(**more), world=world, gpu=gpu, box=8)


def exchange(way: str, world: int, accumulations: int = 1, compute: float = 0.0, **more: Any) -> traffic.Exchange:
    links = traffic.Links(world=world, box=8, gpu=GPU)
    return traffic.of_step(
        way, {"a": SIZE}, (PASS,), links, accumulations=accumulations, compute={"a": compute}, **more
    )


# Communication


@pytest.mark.parametrize("way", ["one", *WAYS])
def test_one_rank_sends_nothing(way: str) -> None:
    assert exchange(way, 1) == traffic.Exchange(sent=0, seconds=0, exposed=0)


@pytest.mark.parametrize(
    ("way", "accumulations", "times"),
    [("ddp", 1, 2), ("ddp", 4, 2), ("deepspeed 1", 4, 2), ("deepspeed 2", 1, 2), ("deepspeed 2", 4, 5)]
    + [("fsdp", 1, 3), ("fsdp", 4, 12), ("deepspeed 3", 4, 12)],
)
@pytest.mark.parametrize("world", [2, 8, 64])
def test_what_is_sent(way: str, accumulations: int, times: int, world: int) -> None:
    assert exchange(way, world, accumulations).sent == pytest.approx(times * (world - 1) / world * 4 * P)


def test_a_collective_by_hand() -> None:
    inside = traffic.Links(world=4, box=8, gpu=GPU).half(8e9, 3)
    assert inside.seconds == pytest.approx(3 * 3 * 10e-6 + 3 / 4 * 8e9 / (0.8 * 450e9))
    across = traffic.Links(world=32, box=8, gpu=GPU).half(8e9)
    within, between = 7 / 8 * 8e9 / (0.8 * 450e9), 3 / 4 * 1e9 / (0.8 * 50e9)
    assert across.seconds == pytest.approx(7 * 10e-6 + 3 * 25e-6 + within + between)


def test_backward_hides_what_fits_into_it() -> None:
    alone = exchange("ddp", 16).exposed
    assert alone == exchange("ddp", 16).seconds > 0
    assert exchange("ddp", 16, compute=0.75 * alone).exposed == pytest.approx(0.5 * alone)
    assert exchange("ddp", 16, compute=10 * alone).exposed == 0
    # Gradients are reduced in the last micro-batch alone, which is shorter.
    assert exchange("ddp", 16, accumulations=4, compute=0.75 * alone).exposed == pytest.approx((1 - 0.125) * alone)
    # Nothing hides that stages 1 and 2 gather the weights afterwards.
    gather = traffic.Links(world=16, box=8, gpu=GPU).half(4 * P).seconds
    assert exchange("deepspeed 1", 16, compute=100).exposed == pytest.approx(gather)
    assert exchange("fsdp", 16, compute=100).exposed == 0


def test_the_way_to_the_host_is_waited_for() -> None:
    kept, moved = (exchange("deepspeed 2", 4, offload=o).exposed for o in ("none", "optimizer"))
    assert moved - kept == pytest.approx(2 * P / (0.8 * 50e9))


def test_updates_that_are_rare_count_less() -> None:
    links = traffic.Links(world=2, box=8, gpu=GPU)
    rare = Pass(net="a", every=5, activations=0, joint=0, flops=1, calls={"a": 1})
    told = traffic.of_step("ddp", {"a": SIZE}, (rare,), links, accumulations=1, compute={"a": 0})
    assert told.sent == pytest.approx(exchange("ddp", 2).sent / 5)


# What fits


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    planner = Planner(run("palette"), start.build(run("palette")), 2, "cuda", 3 * 2**30)
    for way in WAYS:
        choice = Choice(way=way)
        largest = planner.largest(choice)
        assert 1 < largest < estimate.MOST
        assert planner.need(choice, largest).total <= planner.free < planner.need(choice, largest + 1).total
        row = planner.row(choice, 4)
        assert row.micro == 4 and row.accumulations == 1 and row.fits


def test_a_batch_is_cut_where_it_does_not_fit() -> None:
    whole = Planner(run("palette", batch={"size": 24}), start.build(run("palette")), 2, "cuda", 2**40)
    choice = Choice(way="ddp")
    room = whole.need(choice, 5).total + 2**10
    small = Planner(
        run("palette", batch={"size": 24}), start.build(run("palette")), 2, "cuda", int((room + 1.5 * 2**30) / 0.95)
    )
    row = small.row(choice, 12)
    assert (row.fits, row.largest, row.micro, row.accumulations) == (False, 5, 4, 3)
    assert small.looked_at(row) == row


def test_the_simplest_that_fits_is_advised() -> None:
    told = made()
    assert told.advice is not None and told.advice.choice.name == "ddp"
    assert table.advice(told) == "Use strategy=ddp batch.micro=4: the simplest that fits."
    assert [row.choice.name for row in told.rows] == WAYS


WIDE = {"model": {"name": "unet", "channels": 256, "multipliers": [1, 8, 16, 16]}, "ema": {"decay": 0.9}}


def test_where_ddp_does_not_fit_shares_are_advised() -> None:
    told = estimate.plan(
        models.resolve({**WIDE, "data": {"size": 64}, "batch": {"size": 16}}), world=16, gpu="t4-16g", box=8
    )
    first = told.rows[0]
    assert first.choice.name == "ddp" and not first.fits and first.largest == 0 and first.micro == 0
    assert told.advice is not None and told.advice.choice.name == "fsdp"
    assert "Use strategy=fsdp batch.micro=1" in table.advice(told)


def test_what_costs_time_is_advised_last() -> None:
    told = estimate.plan(
        models.resolve({**WIDE, "data": {"size": 64}, "batch": {"size": 2}}), world=2, gpu="t4-16g", box=8
    )
    assert not any(row.fits for row in told.rows)
    said = table.advice(told)
    if told.advice is None:
        assert "Nothing fits" in said
    else:
        # Stage 3 cannot compute blocks again.
        assert ("activation_checkpointing=true" in said) != ("deepspeed.stage=3" in said)
        assert "of the host's memory" in said


def test_one_gpu_is_no_ddp() -> None:
    told = made(world=1)
    assert [row.efficiency for row in told.rows] == [1.0] * 5
    assert told.rows[0].choice.way == "one" and told.rows[0].choice.name == "ddp"
    assert told.rows[0].memory.total < made(world=2, batch={"size": 16}).rows[0].memory.total


def test_hours_and_speed() -> None:
    told = made(world=4)
    row = told.rows[0]
    (taken,) = Footprint(told.run, start.build(told.run), "cuda").passes(2)
    assert row.compute == pytest.approx(taken.flops / (GPU.flops["fp32"] * timing.UTILISATION))
    assert row.seconds == row.compute + row.exchange.exposed and 0 < row.efficiency < 1


def test_a_step_is_timed_on_this_machine() -> None:
    told = estimate.plan(run("pix2pix"), world=1, gpu="here", box=8)
    assert told.timed and told.gpu.name == "cpu" and told.rows[0].compute > 0
    assert "Measured: the seconds" in shown(told)
    assert not estimate.plan(run("pix2pix"), world=1, gpu="here", box=8, timed=False).timed


def test_a_strategy_that_a_model_refuses_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = models.load("unet")
    monkeypatch.setattr(kind, "refuses", lambda self: {"deepspeed": "its losses differ"})
    told = made()
    assert [row.refused for row in told.rows] == [None, None] + ["its losses differ"] * 3
    assert "unet cannot run with deepspeed 2: its losses differ" in shown(told)
    with pytest.raises(ConfigError, match="cannot run with deepspeed 2: its losses differ"):
        emit.emit(told, "deepspeed")


def test_gpus_elsewhere_have_what_this_machine_lacks() -> None:
    offloaded = made(fsdp={"offload": True}, sync_batch_norm=True).rows[1].memory
    assert offloaded.host > 0 and offloaded.weights == 0
    with pytest.raises(ConfigError, match="fsdp.offload=true needs GPUs"):
        made(gpu="here", fsdp={"offload": True})


@pytest.mark.parametrize("setting", ["compile", "activation_checkpointing"])
def test_what_stage_3_cannot_be_with_is_not_planned(setting: str) -> None:
    more: dict[str, Any] = {setting: True}
    told = made(**more)
    assert [row.refused is None for row in told.rows] == [True] * 4 + [False]
    assert f"{setting}=true cannot be with deepspeed.stage = 3" in (told.rows[-1].refused or "")


# What is said


def shown(told: estimate.Plan) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as text:
        console.print(table.render(told))
    return text.get()


@pytest.mark.parametrize("gpu", ["h100-80g", "rtx4090-24g", "here"])
def test_all_is_readable_in_100_columns(gpu: str) -> None:
    text = shown(estimate.plan(run("palette"), world=8, gpu=gpu, box=4, timed=False))
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    for word in (*WAYS, "largest", "efficiency", "GPU-hours", "Use strategy=ddp", "Assumed:"):
        assert word in text, word


def test_large_figures_keep_to_100_columns() -> None:
    told = estimate.plan(
        models.resolve({**WIDE, "data": {"size": 64}, "batch": {"size": 65536}}), world=8192, gpu="rtx3090-24g", box=8
    )
    assert max(map(len, shown(told).splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpu", "h100"], "there is no GPU 'h100'; there are a100-40g, .*: did you mean h100-80g"),
        (["--gpu", "abacus"], "there is no GPU 'abacus'; there are"),
        (["--gpus", "0"], "--gpus 0 cannot be: give a whole number from 1"),
        (["--gpus-per-node", "-1"], "--gpus-per-node -1 cannot be"),
        (["--gpus", "3"], "batch.size = 16 cannot be shared by 3 ranks"),
        (
            ["--gpu", "v100-16g", "precision=bf16"],
            "cannot run on v100-16g, which has fp32 and fp16: use precision=fp16",
        ),
        (["--gpu", "t4-16g", "precision=tf32"], "precision = 'tf32' cannot run on t4-16g"),
        (["--emit", "slurm"], "--emit 'slurm' cannot be: it should be accelerate or deepspeed"),
        (["data.size=24"], "data.size = 24 does not fit"),
        (["batch.sise=3"], "batch.sise"),
    ],
)
def test_mistakes_are_sentences(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", "unet", "--gpu", "h100-80g", "device=cpu", *arguments])
    err = capsys.readouterr().err
    assert end.value.code == 2 and len(err.strip().splitlines()) == 1
    import re

    assert re.search(sentence, err), err


def test_a_run_that_will_not_fit_is_warned_of() -> None:
    assert plan.warning(run(), 2, 2**34) is None
    said = plan.warning(run(), 2, 2**29)
    assert said is not None and "this run will not fit: ddp needs about" in said and "no micro-batch does" in said
    palette = run("palette", batch={"size": 2048})
    need = Planner(palette, start.build(palette), 1, "cpu", 2**40).need(Choice(way="one"), 100).total
    said = plan.warning(palette, 1, int((need + 2**29) / 0.95))
    assert said is not None and "batch.micro=64 would" in said


def test_ranks_are_told_of_it_and_one_process_on_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    small = 2**29
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2 * small // 4096}.__getitem__)
    assert plan.beforehand(run(), torch.device("cpu")) is None
    for key, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(key, str(value))
    assert plan.beforehand(run(), torch.device("cpu")) == plan.warning(run(), 2, small) is not None


def test_of_a_gpu_counts_what_others_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**29, 2**36))
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(plan, "warning", lambda run, world, memory: asked.append((world, memory)))
    plan.beforehand(run(), torch.device("cuda", 0))
    assert asked == [(1, 2**29)]


def test_training_says_it_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def look(run: Any, device: torch.device) -> str:
        assert device.type == "cpu"
        return "this run will not fit: it is too large"

    with pytest.raises(MemdistError):
        loop.train(run(data={"images": str(tmp_path / "none"), "maps": str(tmp_path / "none")}), tmp_path, look=look)
    assert capsys.readouterr().out == "this run will not fit: it is too large\n"


# Catalogue


def test_the_catalogue_is_sound() -> None:
    for name, gpu in gpus.CATALOGUE.items():
        nominal = int(name.rpartition("-")[2].removesuffix("g"))
        assert 0.85 * nominal * 10**9 < gpu.memory <= nominal * 2**30
        assert {"fp32", "fp16"} <= set(gpu.flops) and gpu.network <= gpu.inside * 1.3
        assert gpus.find(name) is gpu
    assert "bf16" not in gpus.CATALOGUE["v100-32g"].flops and "tf32" not in gpus.CATALOGUE["t4-16g"].flops


# Files for other tools


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("offload", ["none", "optimizer", "all"])
def test_deepspeed_takes_what_is_written(precision: str, stage: int, offload: str) -> None:
    if offload == "all" and stage < 3:
        return
    pytest.importorskip("deepspeed")
    optim = {"unet": {"clip": 0.5}}
    settings = run(
        precision=precision, deepspeed={"stage": stage, "offload": offload}, optim=optim, batch={"size": 8, "micro": 2}
    )
    record = json.loads(emit.emit(estimate.plan(settings, world=2, gpu="h100-80g", box=8, timed=False), "deepspeed"))
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(**record["zero_optimization"])
    assert int(zero.stage) == stage
    assert (zero.offload_optimizer is not None, zero.offload_param is not None) == (offload != "none", offload == "all")
    assert (
        record["train_batch_size"]
        == 2 * record["train_micro_batch_size_per_gpu"] * record["gradient_accumulation_steps"]
    )
    assert record["gradient_clipping"] == 0.5 and record["train_micro_batch_size_per_gpu"] == 2
    assert ("torch_autocast" in record) == (precision != "fp32")


def test_deepspeed_takes_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = run(precision="bf16", deepspeed={"stage": 3, "offload": "all"})
    told = estimate.plan(settings, world=1, gpu="h100-80g", box=8, timed=False)
    read = DeepSpeedConfig(json.loads(emit.emit(told, "deepspeed")))
    assert (read.zero_optimization_stage, read.gradient_clipping, read.train_micro_batch_size_per_gpu) == (3, 0, 8)
    assert read.torch_autocast_enabled and read.torch_autocast_dtype == torch.bfloat16


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
@pytest.mark.parametrize("world", [1, 4, 16])
def test_accelerate_takes_what_is_written(strategy: str, world: int, tmp_path: Any) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    told = made(world=world, strategy=strategy, precision="bf16", batch={"size": 16})
    path = tmp_path / "config.yaml"
    path.write_text(emit.emit(told, "accelerate"))
    loaded = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU" if world > 1 else "NO", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}[strategy]
    assert str(getattr(loaded.distributed_type, "value", loaded.distributed_type)) == kind
    assert (loaded.num_processes, loaded.num_machines, loaded.mixed_precision) == (world, (world + 7) // 8, "bf16")
    raw = yaml.safe_load(path.read_text())
    if strategy == "fsdp":
        assert raw["fsdp_config"]["fsdp_version"] == 2 and not raw["fsdp_config"]["fsdp_offload_params"]
    if strategy == "deepspeed":
        assert raw["deepspeed_config"]["zero_stage"] == 2 and raw["deepspeed_config"]["gradient_clipping"] == 0


def test_what_cannot_be_written_is_a_sentence() -> None:
    two = {"generator": {"clip": 1.0}, "discriminator": {}}
    with pytest.raises(ConfigError, match=r"has optim\.generator\.clip=1\.0, optim\.discriminator\.clip=None"):
        emit.emit(made(variant="pix2pix", optim=two), "deepspeed")
    wide = models.resolve({**WIDE, "data": {"size": 64}, "batch": {"size": 16}})
    with pytest.raises(ConfigError, match="ddp does not fit on t4-16g: not one picture at a time fits"):
        emit.emit(estimate.plan(wide, world=16, gpu="t4-16g", box=8), "accelerate")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_this_machines_gpu_is_timed() -> None:
    settings = run("palette", device="cuda")
    told = estimate.plan(settings, world=1, gpu="here", box=8)
    assert told.timed and told.rows[0].compute > 0
