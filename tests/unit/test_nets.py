"""Networks: shapes, sizes, initial outputs, where attention is, parameter counts, memory layout, compilation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memdist.errors import ConfigError
from memdist.nets.attention import SelfAttention
from memdist.nets.blocks import NORMALISATIONS, groups, normalisation, resolutions, waves
from memdist.nets.palette_unet import GuidedUNet
from memdist.nets.patchgan import PatchGAN
from memdist.nets.sr3_unet import SR3UNet
from memdist.nets.unet import UNet


@pytest.fixture(autouse=True)
def seeded():
    """Initialisation draws from torch's generator, which the caller forks and seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def guided(**settings: Any) -> GuidedUNet:
    tiny: dict[str, Any] = dict(
        image_size=16, channels=8, multipliers=(1, 2), blocks=1, attention=(8,), head_channels=8
    )
    return GuidedUNet(6, 3, **(tiny | settings))


def sr3(**settings: Any) -> SR3UNet:
    tiny: dict[str, Any] = dict(image_size=16, channels=8, multipliers=(1, 2), blocks=1, attention=(8,), norm_groups=4)
    return SR3UNet(6, 3, **(tiny | settings))


def alive(net: nn.Module) -> nn.Module:
    """Give zeroed layers weights, so that what comes out depends on what goes in."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.1)
    return net


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def learns(net: nn.Module, name: str) -> bool:
    """Whether a parameter has a gradient that is not zero."""
    gradient = net.get_parameter(name).grad
    return gradient is not None and bool(gradient.any())


def attends_at(net: nn.Module, *inputs: Tensor) -> list[int]:
    """The side lengths at which attention runs, in the order in which it runs."""
    sizes: list[int] = []
    for part in net.modules():
        if isinstance(part, SelfAttention):
            part.register_forward_hook(lambda _part, given, _out: sizes.append(given[0].shape[-1]))
    net(*inputs)
    return sizes


LEVEL = torch.tensor([0.2, 0.9])


@pytest.mark.parametrize("norm", NORMALISATIONS)
@pytest.mark.parametrize("channels", [(4,), (4, 8), (4, 8, 16, 16)])
def test_unet_keeps_the_size_and_stays_in_range(norm, channels):
    net = UNet(3, 2, channels, norm=norm, dropout=0.5)
    assert net.stride == 2 ** len(channels)
    out = net(torch.randn(2, 3, 2 * net.stride, 3 * net.stride))
    assert out.shape == (2, 2, 2 * net.stride, 3 * net.stride)
    assert out.abs().max() < 1


def test_unet_parameter_counts():
    # By hand, for (4, 8): 48*4 + 16*4*8 + 16*8*4 + (16*8*3 + 3), two biases a batch-normalised channel.
    assert count(UNet(3, 3, (4, 8), norm="batch")) == 192 + 512 + 512 + 2 * 4 + 384 + 3
    assert count(UNet(3, 3, (4, 8), norm="instance")) == 192 + 4 + 512 + 8 + 512 + 4 + 384 + 3
    assert count(UNet(3, 3, (32, 64, 128, 256, 512))) == 6_265_155
    # Isola et al.'s generator for 256x256 pictures: the published 54.414 million.
    assert count(UNet(3, 3, (64, 128, 256, 512, 512, 512, 512, 512))) == 54_413_955


def test_unet_initial_weights():
    net = UNet(3, 3, (32, 64, 64), norm="batch")
    weight = net.get_parameter("encoder.1.1.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert net.get_parameter("encoder.1.2.weight").mean().item() == pytest.approx(1, abs=0.01)
    assert not net.get_parameter("output.bias").any()
    assert UNet(3, 3, (32, 64, 64), init="torch").get_parameter("output.bias").any()


def test_unet_skips_reach_every_level():
    """With the deepest path cut, the gradient reaches the other encoder levels by the skips alone."""
    net = UNet(3, 3, (4, 8, 8), norm="none")
    for parameter in net.decoder[0].parameters():
        nn.init.zeros_(parameter)
    net(torch.randn(1, 3, 16, 16)).square().sum().backward()
    assert learns(net, "encoder.0.0.weight") and learns(net, "encoder.1.1.weight")
    assert not learns(net, "encoder.2.1.weight")


def test_unet_dropout_only_in_the_deepest_levels():
    net = UNet(3, 3, (4, 4, 4, 4, 4, 4), dropout=0.5)
    dropped = [any(isinstance(part, nn.Dropout) for part in level.modules()) for level in net.decoder]
    assert dropped == [True, True, True, False, False]


def test_unet_with_a_prior_starts_at_it():
    prior = torch.rand(3, 16, 16) * 1.99 - 0.995
    net = UNet(3, 3, (4, 8), prior=prior)
    out = net(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(out, prior.expand(2, -1, -1, -1), rtol=0, atol=1e-6)

    loss = (out - 0.5).square().mean()
    loss.backward()
    assert learns(net, "output.weight"), "the zeroed layer must learn"

    again = UNet(3, 3, (4, 8), prior=torch.zeros(3, 16, 16))
    again.load_state_dict(net.state_dict())
    x = torch.zeros(1, 3, 16, 16)
    assert torch.equal(again.eval()(x), net.eval()(x))


def test_unet_with_a_prior_of_pure_black_stays_finite():
    net = UNet(3, 3, (4,), prior=torch.full((3, 8, 8), -1.0))
    assert net(torch.zeros(1, 3, 8, 8)).mean().item() == pytest.approx(-0.999, abs=1e-6)


def test_unet_final_none_has_no_bound():
    net = UNet(3, 3, (4,), final="none")
    nn.init.constant_(net.get_parameter("output.bias"), 7.0)
    assert net(torch.zeros(1, 3, 8, 8)).min() > 6


@pytest.mark.parametrize("norm", NORMALISATIONS)
def test_patchgan_of_the_dissertation(norm):
    net = PatchGAN(6, (4, 8, 16, 32, 64), norm=norm)
    assert net(torch.randn(2, 6, 64, 64)).shape == (2, 1, 4, 4)
    assert (net.stride, net.cells(64), net.cells(128)) == (16, 4, 8)


def test_patchgan_of_pix2pix():
    net = PatchGAN(6, (2, 4, 8, 16), flat_kernel=4)
    assert (net.stride, net.cells(256), net.cells(64)) == (8, 30, 6)
    assert net(torch.randn(1, 6, 64, 64)).shape == (1, 1, 6, 6)
    # The published 70x70 discriminator of 2.769 million parameters.
    assert count(PatchGAN(6, (64, 128, 256, 512), flat_kernel=4)) == 2_768_705


@pytest.mark.parametrize("flat_kernel", [3, 4])
@pytest.mark.parametrize("strides", [(2, 2, 1), (1, 2, 2), (2, 1, 1), (3, 2, 1)])
def test_patchgan_cells_agree_with_the_network(strides, flat_kernel):
    net = PatchGAN(1, (2, 2, 2), norm="none", strides=strides, flat_kernel=flat_kernel)
    for height, width in ((24, 40), (31, 22)):
        assert net(torch.randn(1, 1, height, width)).shape[2:] == (net.cells(height), net.cells(width))


def test_patchgan_sees_70_pixels():
    net = PatchGAN(1, (2, 2, 2, 2), norm="none", flat_kernel=4)
    x = torch.randn(1, 1, 128, 128, requires_grad=True)
    out = net(x)
    out[0, 0, 6, 6].backward()
    assert x.grad is not None
    seen = x.grad[0, 0].abs().sum(0).nonzero()
    assert (seen.max() - seen.min() + 1).item() == 70


def test_patchgan_gives_logits():
    net = PatchGAN(1, (2, 2))
    nn.init.constant_(net.get_parameter("output.bias"), -5.0)
    assert net(torch.zeros(1, 1, 8, 8)).max() < -4


@pytest.mark.parametrize("make", [guided, sr3])
def test_diffusion_nets_start_at_zero_and_keep_the_size(make):
    net = make()
    assert net.stride == 2
    out = net(torch.randn(2, 6, 16, 20), LEVEL)
    assert out.shape == (2, 3, 16, 20)
    assert not out.any(), "the output layer starts at zero"


def test_guided_residual_branches_start_as_nothing():
    net = guided()
    zeroed = [name for name, parameter in net.named_parameters() if not parameter.any() and name.endswith("weight")]
    blocks = [name for name, _ in net.named_parameters() if name.endswith("conv_out.weight")]
    attentions = [name for name, _ in net.named_parameters() if name.endswith("project.weight")]
    assert set(zeroed) == {*blocks, *attentions, "output.weight"}
    assert len(blocks) == 10 and len(attentions) == 4


@pytest.mark.parametrize("make", [guided, sr3])
def test_diffusion_nets_use_the_level(make):
    net = alive(make()).eval()
    x = torch.randn(1, 6, 16, 16).expand(2, -1, -1, -1)
    first, second = net(x, LEVEL)
    assert (first - second).abs().max() > 1e-4
    # An item is the same alone and in a batch, and float64 levels are as good as float32 ones.
    torch.testing.assert_close(net(x[1:], LEVEL[1:].double())[0], second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [guided, sr3])
@pytest.mark.parametrize(("attention", "levels"), [((), []), ((8,), [8]), ((16,), [16]), ((16, 8), [16, 8])])
def test_attention_is_at_the_resolutions_asked_for(make, attention, levels):
    x = torch.zeros(1, 6, 16, 16)
    sizes = attends_at(make(attention=attention), x, LEVEL[:1])
    down = sorted(levels, reverse=True)
    # One block a level on the way down, the middle (always, at 8 pixels), two blocks a level on the way up.
    assert sizes == [*down, 8, *(size for size in reversed(down) for _ in range(2))]


@pytest.mark.parametrize("make", [guided, sr3])
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(attention=(2,)), "attention is asked for at 2 pixels, but this network works at 16, 8 pixels"),
        (dict(image_size=15), "image_size is 15, .* choose a multiple of 2"),
    ],
)
def test_diffusion_nets_refuse_what_does_not_fit(make, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make(**settings)


def test_heads_and_groups_that_do_not_divide_are_named():
    with pytest.raises(ConfigError, match="head_channels is 5, which does not divide the 16 channels"):
        guided(head_channels=5)
    with pytest.raises(ConfigError, match="norm_groups is 3, which does not divide the base width of 8"):
        sr3(norm_groups=3)


def test_diffusion_parameter_counts():
    assert count(guided()) == 53_491
    assert count(sr3()) == 41_995
    with torch.device("meta"):
        # The settings of the public Palette for 256 pixels. Its attn_res 16 is a rate there, one that four levels never
        # reach: only the middle attends.
        palette = GuidedUNet(6, 3, image_size=256, channels=64, multipliers=(1, 2, 4, 8), attention=())
    assert count(palette) == 62_641_347


def test_odd_widths_work():
    assert guided(channels=25, head_channels=25)(torch.randn(2, 6, 16, 16), LEVEL).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_by_its_formula(heads):
    """softmax(q k^T / sqrt(d)) v, written out for each head, with q, k, v side by side in each head."""
    attention = SelfAttention(8, heads=heads, zero=False).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    mixed = attention.qkv(attention.norm(x)).flatten(2)
    width = 8 // heads
    parts = []
    for head in range(heads):
        query, key, value = mixed[:, 3 * width * head : 3 * width * (head + 1)].split(width, dim=1)
        weights = torch.softmax(query.transpose(1, 2) @ key / width**0.5, dim=-1)
        parts.append(value @ weights.transpose(1, 2))
    expected = x + attention.project(torch.cat(parts, dim=1).reshape(x.shape))
    torch.testing.assert_close(attention(x), expected)


def test_attention_starts_as_the_identity():
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(SelfAttention(8, heads=2)(x), x)


def test_normalisation_kinds():
    assert isinstance(normalisation("batch", 6), nn.BatchNorm2d)
    assert isinstance(normalisation("none", 6), nn.Identity)
    instance = normalisation("instance", 6)
    assert not instance.state_dict(), "neither weights nor running statistics"
    group = normalisation("group", 48)
    assert isinstance(group, nn.GroupNorm)
    assert group.num_groups == 24 and group.affine
    with pytest.raises(ConfigError, match="normalisation is 'layer', but must be one of batch, instance, group, none"):
        normalisation("layer", 6)


@pytest.mark.parametrize(("channels", "expected"), [(1, 1), (7, 7), (32, 32), (48, 24), (50, 25), (64, 32), (37, 1)])
def test_groups(channels, expected):
    assert groups(channels) == expected


def test_resolutions():
    assert resolutions(128, 4, (16, 32)) == [128, 64, 32, 16]


def test_waves():
    cosines, sines = waves(torch.tensor([0.0, 0.5], dtype=torch.float64), 4)
    assert cosines.dtype == torch.float32
    frequency = torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(cosines, torch.stack((torch.ones(4), (0.5 * frequency).cos())))
    torch.testing.assert_close(sines, torch.stack((torch.zeros(4), (0.5 * frequency).sin())))


NETS = {
    "unet": (lambda: UNet(3, 3, (4, 8, 8), norm="instance", prior=torch.zeros(3, 16, 16)), (torch.ones(2, 3, 16, 16),)),
    "patchgan": (lambda: PatchGAN(6, (4, 8), norm="group"), (torch.ones(2, 6, 16, 16),)),
    "guided": (guided, (torch.ones(2, 6, 16, 16), LEVEL)),
    "sr3": (sr3, (torch.ones(2, 6, 16, 16), LEVEL)),
}


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    make, (x, *rest) = NETS[name]
    return alive(make()), (torch.randn_like(x), *rest)


@pytest.mark.parametrize("name", NETS)
def test_channels_last_gives_the_same(name):
    net, inputs = made(name)
    expected = net(*inputs)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    out = net(inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_learns(name):
    """DDP demands it: a parameter without a gradient would hang or be refused."""
    net, inputs = made(name)
    net(*inputs).square().sum().backward()
    assert [key for key, parameter in net.named_parameters() if parameter.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_compiles_without_graph_breaks(name):
    """Traced forward and backward; what the default back end makes of the graph is not the nets' doing, and slow."""
    net, inputs = made(name)
    expected = net(*inputs)
    out = torch.compile(net, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
