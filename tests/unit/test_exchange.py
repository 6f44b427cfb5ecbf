"""What is read from outside: nothing runs, names and shapes become settings, and what is strange gets one sentence."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memdist import rundir
from memdist.diffusion import schedule
from memdist.errors import CheckpointError, ConfigError, MemdistError
from memdist.exchange import importing, palette, pix2pix
from memdist.train import checkpoint, restore
from tests import foreign


@pytest.mark.parametrize("prefix", ["", "denoise_fn.", "module.denoise_fn.", "netG.module.denoise_fn."])
@pytest.mark.parametrize("net", ["guided", "sr3"])
def test_palettes_settings_are_seen(net: str, prefix: str) -> None:
    weights, tables = palette.clean(foreign.denoiser(net, prefix=prefix) | foreign.tables())
    found = palette.convert(weights, 128)
    ways = {"model.scale_shift": True, "model.resample": "block"} if net == "guided" else {}
    assert found.derived == ways | {
        "model.name": "palette",
        "model.net": net,
        "model.channels": 8,
        "model.multipliers": [1, 2],
        "model.blocks": 1,
        "model.attention": [64],
        "data.image_channels": 3,
        "data.map_channels": 3,
    }

    assert palette.noise_schedule(tables)["model.schedule.end"] == 0.05


@pytest.mark.parametrize("resample", ["block", "conv", "pool"])
@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize(
    ("multipliers", "seen"),
    [((1, 1.5, 2), [1, 1.5, 2]), ((0.5, 1.1), [0.5, 1.1]), ((1.99, 1, 1.7), [1.9, 1, 1.7]), ((3,), [3])],
)
def test_every_way_of_the_guided_network_is_seen(
    resample: str, scale_shift: bool, multipliers: tuple[float, ...], seen: list[float]
) -> None:
    more: dict[str, Any] = {"scale_shift": scale_shift, "resample": resample, "multipliers": multipliers, "blocks": 2}
    weights, _ = palette.clean(foreign.denoiser(channels=20, attention=(16,), **more))
    found = palette.convert(weights, 16)
    assert found.derived["model.scale_shift"] is scale_shift
    # One level has nothing to be seen halving by.
    assert found.derived["model.resample"] == (resample if len(multipliers) > 1 else "block")
    told = found.derived["model.multipliers"]
    assert [int(20 * m) for m in told] == [int(20 * m) for m in multipliers] and told == pytest.approx(seen, abs=0.06)
    assert (found.derived["model.blocks"], found.derived["model.attention"]) == (2, [16])


@pytest.mark.parametrize(
    ("steps", "start", "end"),
    [(2000, 1e-6, 1e-2), (1000, 1e-4, 0.09), (1000, 1e-4, 0.02), (100, 8.5e-4, 0.0312), (17, 1.2345e-3, 0.5), (3, 0.1, 0.2)],
)  # fmt: skip
def test_linear_noise_tables_are_recognised(steps: int, start: float, end: float) -> None:
    found = palette.noise_schedule({"gammas": schedule.linear_beta(steps, start, end).float()})
    assert found["model.schedule.steps"] == steps
    assert found["model.schedule.start"] == pytest.approx(start, rel=1e-12)
    assert found["model.schedule.end"] == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize(("steps", "start", "end"), [(2000, 1e-6, 1e-2), (1000, 1e-4, 0.02), (50, 1e-3, 0.5)])
def test_quadratic_noise_tables_are_recognised(steps: int, start: float, end: float) -> None:
    found = palette.noise_schedule({"gammas": schedule.quad_beta(steps, start, end).float()})
    assert (found["model.schedule.name"], found["model.schedule.steps"]) == ("quad_beta", steps)
    assert found["model.schedule.start"] == pytest.approx(start, rel=1e-12)
    assert found["model.schedule.end"] == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize("steps", [3, 100, 2000])
def test_cosine_noise_tables_are_recognised(steps: int) -> None:
    found = palette.noise_schedule({"gammas": schedule.cosine_beta(steps).float()})
    assert found == {"model.schedule.name": "cosine_beta", "model.schedule.steps": steps}


def other_tables() -> dict[str, Tensor]:
    place = torch.linspace(0, 1, 1000, dtype=torch.float64)
    return {
        "cubic": torch.cumprod(1 - (1e-3 + place * (0.1 - 1e-3)) ** 3, 0),
        "constant": torch.cumprod(torch.full((100,), 0.99, dtype=torch.float64), 0),
        "warm-up": torch.cumprod(1 - (place * 10).clamp(1e-6, 1) * 1e-2, 0),
        "cosine": schedule.cosine(schedule.times(1000)),
        "slightly off": schedule.linear_beta(1000, 1e-4, 0.02) * (1 + 1e-5 * (40 * place).sin()),
        "rising": schedule.linear_beta(1000).flip(0),
        "nothing": torch.zeros(1000),
        "one": torch.tensor([0.5]),
        "a scalar": torch.tensor(0.5),
    }


@pytest.mark.parametrize("name", other_tables())
def test_other_noise_tables_are_asked_for(name: str) -> None:
    with pytest.raises(CheckpointError, match="model.schedule.name=cosine"):
        palette.noise_schedule({"gammas": other_tables()[name].float()})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("out.0.bias"), r"missing: out\.0\.bias"),
        (lambda s: s.update({"label_emb.weight": torch.zeros(3)}), "unknown: label_emb.weight"),
        (lambda s: s.update({"out.0.bias": torch.zeros(3)}), r"shape: out\.0\.bias \(\[3\] instead of \[8\]\)"),
        (lambda s: s.pop("cond_embed.0.weight"), "neither of Palette's U-Nets"),
        (lambda s: s.update({"cond_embed.0.weight": torch.tensor(1.0)}), "has no 'cond_embed.0.weight' of the kind"),
        (lambda s: s.update({"out.2.weight": torch.zeros(0)}), "has no 'out.2.weight' of the kind"),
        (lambda s: s.update({"cond_embed.0.weight": torch.zeros(32, 3)}), r"shape: cond_embed\.0\.weight \(\[32, 3\] instead"),
        (lambda s: s.update({"input_blocks.2.0.op.weight": torch.zeros(8, 8, 3, 3)}), "missing: input_blocks.2.0.op.bias"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("output_blocks.1.2")], "unknown: input_blocks.3"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("output_blocks")], "0 decoder entries"),
        (lambda s: s.update({"out": torch.zeros(1)}), "unknown: out"),
    ],
)  # fmt: skip
def test_what_is_no_palette_is_said(change: Any, says: str) -> None:
    state, _ = palette.clean(foreign.denoiser())
    change(state)
    with pytest.raises(CheckpointError, match=says):
        palette.convert(state, 64)


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("prefix", ["", "module.", "netG.module.", "generator."])
def test_generators_settings_are_seen(norm: str, prefix: str) -> None:
    state, empty = pix2pix.split(foreign.generator(norm, prefix=prefix))
    found = pix2pix.convert_generator(state)
    assert not empty
    assert found.derived == {
        "model.name": "pix2pix",
        "model.generator.channels": 4,
        "model.generator.multipliers": [1, 2, 4],
        "model.generator.norm": norm,
        "model.generator.bias": "never" if norm == "none" else "auto",
        "model.generator.prior": "none",
        "data.image_channels": 3,
        "data.map_channels": 3,
    }


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_discriminators_settings_are_seen(norm: str) -> None:
    found = pix2pix.convert_discriminator(foreign.discriminator(norm), 3, 3)
    assert found.derived["model.discriminator.norm"] == norm
    assert found.derived["model.discriminator.multipliers"] == [1, 2]
    assert found.derived["model.discriminator.flat_kernel"] == 4


def test_both_networks_may_lie_in_one_file() -> None:
    whole = foreign.generator(prefix="generator.") | foreign.discriminator(prefix="discriminator.")
    generator, discriminator = pix2pix.split(whole)
    assert pix2pix.convert_generator(generator).weights and pix2pix.convert_discriminator(discriminator, 3, 3).weights


def test_statistics_of_old_instance_norms_are_thrown_away_as_the_public_code_does() -> None:
    state = foreign.generator("instance")
    old = dict(state)
    for name in ("model.model.1.model.2", "model.model.1.model.3.model.4", "model.model.1.model.6"):
        old |= {f"{name}.running_mean": torch.zeros(4), f"{name}.running_var": torch.ones(4)}
    found = pix2pix.convert_generator(old)
    assert found.derived["model.generator.norm"] == "instance"
    mine = pix2pix.convert_generator(state).weights
    assert found.weights.keys() == mine.keys()


def test_old_batch_norms_have_no_counter() -> None:
    state = {k: v for k, v in foreign.generator().items() if not k.endswith("num_batches_tracked")}
    weights = pix2pix.convert_generator(state).weights
    assert all(v == 0 for k, v in weights.items() if k.endswith("num_batches_tracked"))
    assert any(k.endswith("num_batches_tracked") for k in weights)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"model.1.weight": 1, "model.10.conv_block.1.weight": 1}, "is a ResNet generator"),
        ({"model.0.weight": 1}, "is a discriminator"),
        ({"net.0.weight": 1}, "is a discriminator"),
        ({"conv1.weight": 1}, "holds no U-Net generator of pix2pix: it has conv1.weight"),
        ({"model.model.0.weight": 1}, "has 1 levels"),
    ],
)
def test_what_is_no_generator_is_said(state: dict[str, int], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        pix2pix.convert_generator({key: torch.zeros(4, 3, 4, 4) for key in state})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("model.model.3.bias"), r"missing: model\.model\.3\.bias"),
        (lambda s: s.update({"extra.filt": torch.zeros(1)}), "unknown: extra.filt"),
        (lambda s: s.update({"model.model.3.bias": torch.zeros(5)}), "shape: model.model.3.bias"),
    ],
)
def test_what_is_strange_in_a_generator_is_said(change: Any, says: str) -> None:
    state = foreign.generator()
    change(state)
    with pytest.raises(CheckpointError, match=says):
        pix2pix.convert_generator(state)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"net.0.weight": torch.zeros(4, 6, 1, 1)}, "is a pixel discriminator"),
        ({"head.weight": torch.zeros(1)}, "is no PatchGAN"),
        (foreign.discriminator() | {"model.2.filt": torch.zeros(1)}, "unknown: model.2.filt"),
        (foreign.discriminator(channels=4), "judges 4 channels, where the generator's picture and map have 6"),
    ],
)
def test_what_is_no_discriminator_is_said(state: dict[str, Tensor], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        pix2pix.convert_discriminator(state, 3, 3)


def settings(folder: Path) -> Any:
    return restore.settings(folder)


def test_what_weights_do_not_tell_is_given_or_said(tmp_path: Path) -> None:
    source = foreign.save_palette(tmp_path / "in")
    lines = importing.import_("palette", source, tmp_path / "a", ["data.size=16", "model.head_channels=8"])
    told = "\n".join(lines)
    assert "model.dropout=0.2" in told and "ema.decay=0.9999" in told and "data.size" not in told
    run = settings(tmp_path / "a")
    assert run.model.attention == (8,) and run.ema.decay == 0.9999 and run.model.schedule.steps == 50
    record = rundir.read_json(tmp_path / "a" / rundir.PROVENANCE)["imported"]
    assert len(record["files"]) == 2 and record["given"] == {"data.size": 16, "model.head_channels": 8}
    assert record["derived"]["model.schedule.end"] == 0.05 and "model.dropout" in record["assumed"]


def test_averages_beside_the_weights_become_averages(tmp_path: Path) -> None:
    source = foreign.save_palette(tmp_path / "in", "sr3")
    given = ["data.size=16", "model.norm_groups=4"]
    importing.import_("palette", source, tmp_path / "a", given)
    first = palette.convert(palette.clean(foreign.denoiser("sr3"))[0], 16).weights
    second = palette.convert(palette.clean(foreign.denoiser("sr3", seed=9))[0], 16).weights
    for ema, wanted in ((False, first), (True, second)):
        net = restore.restore(tmp_path / "a", "best", ema=ema, device=torch.device("cpu")).nets["denoiser"]
        assert all(torch.equal(value, wanted[key]) for key, value in net.state_dict().items())
    lines = importing.import_("palette", source, tmp_path / "b", [*given, "ema.decay=null"])
    assert any("left out" in line for line in lines)
    assert not restore.restore(tmp_path / "b", "best", ema=True, device=torch.device("cpu")).averaged


def test_a_generator_alone_gets_a_new_discriminator(tmp_path: Path) -> None:
    source = foreign.save_pix2pix(tmp_path / "in", judge=False) / "latest_net_G.pth"
    for out in ("a", "b"):
        lines = importing.import_("pix2pix", source, tmp_path / out, ["data.size=32"])
    assert any("no discriminator (latest_net_D.pth)" in line for line in lines)
    # The same seed, the same discriminator.
    files = [checkpoint.folder(tmp_path / out, 0) / checkpoint.NETS for out in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert settings(tmp_path / "a").model.loss == "vanilla" and settings(tmp_path / "a").model.l1_weight == 100


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (["model.channels=16"], ConfigError, "model.channels = 16 cannot be: the weights of .* say 8; leave it out"),
        (["data.map_channels=1"], ConfigError, "data.map_channels = 1 cannot be"),
        (["model.colour=red"], ConfigError, "there is no setting 'model.colour'"),
        (["data.size=15"], ConfigError, "data.size = 15 cannot be: these weights halve pictures 1 times"),
        (["data.size=big"], ConfigError, "data.size = 'big' cannot be"),
        (["data=3"], ConfigError, "data = 3 cannot be"),
        (["model.head_channels=7"], ConfigError, "head_channels is 7"),
        ([], ConfigError, "head_channels is 32"),
        (["model.heads=3"], ConfigError, "heads is 3"),
    ],
)
def test_settings_that_cannot_be(given: list[str], error: type[MemdistError], says: str, tmp_path: Path) -> None:
    source = foreign.save_palette(tmp_path / "in")
    with pytest.raises(error, match=says):
        importing.import_("palette", source, tmp_path / "out", given)
    assert not (tmp_path / "out").exists()


def test_grey_pictures_are_known_by_the_weights(tmp_path: Path) -> None:
    given = ["data.size=16", "model.heads=1"]
    torch.save(foreign.denoiser(image=1), tmp_path / "1_Network.pth")
    importing.import_("palette", tmp_path / "1_Network.pth", tmp_path / "out", given)
    assert settings(tmp_path / "out").data.image_channels == 1
    torch.save(foreign.denoiser(image=4), tmp_path / "2_Network.pth")
    with pytest.raises(CheckpointError, match="takes pictures of 4 channels"):
        importing.import_("palette", tmp_path / "2_Network.pth", tmp_path / "none", given)
    assert not (tmp_path / "none").exists()


def test_an_odd_table_may_be_named_by_hand(tmp_path: Path) -> None:
    odd = {"gammas": torch.linspace(0.99, 0.01, 40)}
    torch.save(foreign.denoiser() | odd, tmp_path / "1_Network.pth")
    given = ["data.size=16", "model.heads=1"]
    with pytest.raises(CheckpointError, match="say which it is"):
        importing.import_("palette", tmp_path / "1_Network.pth", tmp_path / "out", given)
    more = ["model.schedule.name=linear", "model.schedule.steps=40", "eval.steps=40"]
    importing.import_("palette", tmp_path / "1_Network.pth", tmp_path / "out", given + more)
    assert settings(tmp_path / "out").model.schedule.name == "linear"


def test_an_average_of_another_network_is_refused(tmp_path: Path) -> None:
    source = foreign.save_palette(tmp_path / "in")
    torch.save(foreign.denoiser("sr3"), tmp_path / "in" / "10_Network_ema.pth")
    with pytest.raises(CheckpointError, match="is of another network than"):
        importing.import_("palette", source, tmp_path / "out", ["data.size=16", "model.heads=1"])


@pytest.mark.parametrize("depth", [3, 5, 6, 8])
def test_dropout_stands_where_the_public_code_has_it(depth: int) -> None:
    from memdist.nets.unet import UNet

    widths = [2 * min(2**level, 8) for level in range(depth)]
    net = UNet(3, 3, widths, dropout=0.5, dropout_levels=list(range(1, depth - 4)))
    dropped = [level for level in range(depth - 1) if "Dropout" in str(net.decoder[level])]
    # Of num_downs levels the num_downs - 5 blocks of 8c to 8c round the innermost one; the paper has the three deepest.
    assert dropped == {3: [], 5: [], 6: [1], 8: [1, 2, 3]}[depth]
    paper = UNet(3, 3, widths, dropout=0.5).decoder
    assert [level for level in range(depth - 1) if "Dropout" in str(paper[level])] == [0, 1, 2][: depth - 1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("model.name=pix2pix", "model.name = 'pix2pix' cannot be: the weights of"),
        ("model=unet", "model.name = 'unet' cannot be: the weights of"),
        ("model.channels=16", "model.channels = 16 cannot be: the weights of"),
        ("data.size=1", "data.size = 1 cannot be: these weights halve pictures 1 times; give a multiple of 2"),
        ("data.size=17", "give a multiple of 2"),
    ],
)
def test_what_contradicts_the_weights_gets_one_sentence(given: str, says: str, tmp_path: Path) -> None:
    path = foreign.save_palette(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(says)) as told:
        importing.import_("palette", path, tmp_path / "run", ["data.size=16", "model.heads=1", given])
    assert len(str(told.value).splitlines()) == 1 and not (tmp_path / "run").exists()
