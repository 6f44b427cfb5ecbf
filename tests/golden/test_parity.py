"""The public implementations and ours are the same functions of the same weights.

`parity/*.safetensors` hold what the public code gave (run by itself, in float32, on a CPU): outputs, losses, posterior means
and variances, norms of gradients. Their metadata gives the settings. Weights and inputs are a formula of their names and
shapes, so that only results have to be kept; our side goes from the foreign names through the import.

Cases guided-6 to 8 and pix2pix-8 of two normalised networks come from an implementation of the same networks that was
written apart from ours and from theirs; it agrees with ten of the other cases to 1.1e-5. Of the latter two the weights were
chosen (`salt`) so that no ReLU stands so near its kink that a processor's way of rounding decides on gradients.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from memdist import config, draws, models
from memdist.diffusion import schedule
from memdist.exchange import palette, pix2pix
from memdist.model import Model, Pair, Task
from memdist.nets.patchgan import PatchGAN
from memdist.nets.unet import UNet

FOLDER = Path(__file__).parent / "parity"
TOLERANCE = 1e-4
"""Relative to the largest value of a tensor."""
VANISHING = 1e-3
"""Of the total: below it, float32's rounding of the total is allowed (a bias before instance normalisation has no gradient)."""

CASES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
PALETTE = [name for name in CASES if not name.startswith("pix2pix")]
PIX2PIX = [name for name in CASES if name.startswith("pix2pix")]


def normal(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that belong to a name."""
    return draws.normal(torch.tensor([draws.key(name)]), "parity", shape)[0]


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight as large as such weights are: it depends on its foreign name and its shape alone."""
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    drawn = normal(name, shape)
    if kind == "running_var":
        return (0.3 * drawn).exp()
    if len(shape) > 1:
        # Of what an output sums over; a transposed convolution's first axis is its input.
        return drawn / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.2 * drawn if kind == "weight" else 0.2 * drawn


def smooth(name: str, shape: tuple[int, ...]) -> Tensor:
    """Pictures [N, C, H, W] in (-1, 1)."""
    return normal(name, shape).tanh()


def thinned(maps: Tensor) -> Tensor:
    """At most some 8 rows and columns of a picture: enough to tell it from another."""
    return maps[:, :, :: max(1, maps.shape[2] // 8), :: max(1, maps.shape[3] // 8)]


def fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Hash of names and shapes."""
    lines = sorted(f"{name} {list(shape)}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["settings"]), load_file(path)


def close(mine: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((mine.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-30))


def gradients(net: nn.Module, names: Mapping[str, str], theirs: Tensor) -> None:
    """Norms of the gradients of `net`, in the order of their foreign names, are `theirs`."""
    norms = {names[key]: p.grad.double().norm() for key, p in net.named_parameters() if p.grad is not None}
    mine, total = torch.stack([norms[name] for name in sorted(norms)]), theirs.double().norm()
    assert len(mine) == len(theirs) == len(list(net.parameters()))
    assert close(mine.norm()[None], total[None]) < TOLERANCE
    errors = (mine - theirs.double()).abs() / theirs.double().clamp_min(float(VANISHING * total))
    assert float(errors.max()) < TOLERANCE, sorted(norms)[int(errors.argmax())]


def resolved(derived: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    raw: dict[str, Any] = {}
    return models.resolve(config.override(raw, [f"{k}={json.dumps(v)}" for k, v in {**derived, **more}.items()]))


def built(run: Any) -> tuple[Model, dict[str, nn.Module], Any]:
    task = Task(size=run.data.size, image_channels=3, map_channels=run.data.map_channels)
    model = models.load(run.model.name)(run.model, task)
    stage = model.stage()
    return model, dict(stage.nets), stage.updates


@pytest.mark.parametrize("name", PALETTE)
def test_palette(name: str) -> None:
    said, given = case(name)
    unet, guided, size, outside = said["unet"], said["net"] == "guided", said["size"], said["unet"]["out_channel"]
    levels = [
        level
        for level in range(len(unet["channel_mults"]))
        if (2**level if guided else size // 2**level) in unet["attn_res"]
    ]
    layout = palette.Layout(
        guided, unet["in_channel"], outside, unet["inner_channel"], unet["channel_mults"], unet["res_blocks"], levels
    )
    if guided:
        layout = layout._replace(scale_shift=unet.get("use_scale_shift_norm", True))
        if not unet.get("resblock_updown", True):
            layout = layout._replace(resample="conv" if unet.get("conv_resample", True) else "pool")
    ours = palette.denoiser(layout).state_dict()
    names = {key: palette.foreign_name(guided, key) for key in ours}
    # Theirs are convolutions along one axis.
    flat = {names[k]: tuple(v.shape)[:3] if guided and ("qkv.weight" in k or "project.weight" in k) else tuple(v.shape)
            for k, v in ours.items()}  # fmt: skip
    assert fingerprint(flat) == said["names"]

    found = palette.convert({key: weight(key, shape) for key, shape in flat.items()}, size)
    table = palette.noise_schedule({"gammas": given["gammas"]})
    assert {k: table[f"model.schedule.{k}"] for k in said["schedule"]} == said["schedule"]
    assert found.derived["model.multipliers"] == unet["channel_mults"]
    told = (found.derived.get("model.scale_shift", True), found.derived.get("model.resample", "block"))
    assert told == (layout.scale_shift, layout.resample)
    heads = {"model.norm_groups": unet.get("norm_groups")}
    if guided:
        channels = unet.get("num_head_channels", -1)
        heads = {"model.heads": 1} if channels == -1 else {"model.head_channels": channels}
    run = resolved(found.derived | table, {**heads, "data.size": size, "model.dropout": 0.0})
    model, nets, (update,) = built(run)
    nets["denoiser"].load_state_dict(found.weights)
    assert found.derived["data.image_channels"] == 3

    image, map_ = smooth("image", (2, 3, size, size)), smooth("map", (2, outside, size, size))
    gammas, step = run.model.schedule.table(), given["t"]
    level, cleaner = gammas[step], torch.cat((torch.ones(1, dtype=torch.float64), gammas))[step]
    with torch.no_grad():
        noise = nets["denoiser"](torch.cat((image, map_), dim=1), level.float())
        clean = schedule.to_x0("epsilon", noise, map_, level).clamp(-1, 1)
        mean, variance = schedule.posterior(clean, map_, level, cleaner)
    assert close(gammas.float(), given["gammas"]) < 1e-6
    assert close(noise, given["noise"]) < TOLERANCE
    assert close(mean, given["posterior_mean"]) < TOLERANCE
    assert close(variance.clamp_min(1e-20).log().flatten(), given["posterior_log_variance"]) < TOLERANCE

    loss = update.loss(nets, Pair(image, map_, torch.arange(2)), {}).value
    loss.backward()
    assert close(loss.detach()[None], given["loss"]) < TOLERANCE
    gradients(nets["denoiser"], names, given["grad_norms"])


def foreign_generator(widths: list[int], said: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    with torch.device("meta"):
        bias = False if said["norm"] == "none" else None
        net = UNet(3, said["output_nc"], widths, norm=said["norm"], bias=bias)
    names = {key: pix2pix.generator_name(len(widths), key) for key in net.state_dict()}
    return names, {names[key]: tuple(v.shape) for key, v in net.state_dict().items()}


def foreign_discriminator(
    widths: list[int], said: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    with torch.device("meta"):
        bias = False if said["norm_d"] == "none" else None
        net = PatchGAN(3 + said["output_nc"], widths, norm=said["norm_d"], bias=bias, flat_kernel=4)
    names = {key: pix2pix.discriminator_name(len(widths), key) for key in net.state_dict()}
    return names, {names[key]: tuple(v.shape) for key, v in net.state_dict().items()}


@pytest.mark.parametrize("name", PIX2PIX)
def test_pix2pix(name: str) -> None:
    said, given = case(name)
    size, outside = said["size"], said["output_nc"]
    widths = [said["ngf"] * min(2**level, 8) for level in range(said["num_downs"])]
    judges = [said["ndf"] * min(2**layer, 8) for layer in range(said["n_layers"] + 1)]
    (names, shapes), (names_d, shapes_d) = foreign_generator(widths, said), foreign_discriminator(judges, said)
    assert (fingerprint(shapes), fingerprint(shapes_d)) == (said["names"], said["names_d"])

    salt = said.get("salt", "")
    found = pix2pix.convert_generator({key: weight(salt + key, shape) for key, shape in shapes.items()})
    judge = pix2pix.convert_discriminator({k: weight("D" + salt + k, s) for k, s in shapes_d.items()}, 3, outside)
    assert found.derived["model.generator.norm"] == said["norm"]
    assert judge.derived["model.discriminator.norm"] == said["norm_d"]
    more = {"data.size": size, "model.loss": said["loss"], "model.l1_weight": said["l1_weight"]}
    run = resolved(found.derived | judge.derived, more)
    model, nets, (moves, judges_) = built(run)
    nets["generator"].load_state_dict(found.weights)
    nets["discriminator"].load_state_dict(judge.weights)

    pair = Pair(smooth("image", (2, 3, size, size)), smooth("map", (2, outside, size, size)), torch.arange(2))
    scratch: dict[str, Tensor] = {}
    loss = moves.loss(nets, pair, scratch)
    loss.value.backward()
    gradients(nets["generator"], names, given["grad_norms"])
    nets["discriminator"].zero_grad()
    loss_d = judges_.loss(nets, pair, scratch)
    loss_d.value.backward()
    gradients(nets["discriminator"], names_d, given["grad_norms_d"])
    with torch.no_grad():
        on_fake = nets["discriminator"](torch.cat((pair.image, scratch["fake"]), dim=1))
        on_real = nets["discriminator"](torch.cat((pair.image, pair.map), dim=1))
        for net in nets.values():
            net.eval()
        quiet = nets["generator"](pair.image)
    mine = {
        "fake": thinned(scratch["fake"]),
        "quiet": thinned(quiet),
        "d_fake": thinned(on_fake),
        "d_real": thinned(on_real),
        "loss": loss.value.detach()[None],
        "loss_d": loss_d.value.detach()[None],
    }
    for key, value in mine.items():
        assert close(value, given[key]) < TOLERANCE, key


def test_the_cases_are_many_and_small() -> None:
    assert len(PALETTE) >= 8 and len(PIX2PIX) >= 10
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 300_000
