"""Metrics against numpy, scipy and scikit-image, against closed forms, and where they are undefined."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import entropy, pearsonr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from memdist import metrics

EPS = np.finfo(np.float64).eps


def _maps(n: int = 4, channels: int = 3, height: int = 17, width: int = 23, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).uniform(-1, 1, (n, channels, height, width))
    return torch.from_numpy(values.astype(np.float32))


def _flat(value: float, shape: tuple[int, ...] = (1, 3, 16, 16)) -> torch.Tensor:
    return torch.full(shape, value)


def _brightness(maps: torch.Tensor) -> np.ndarray:
    return ((maps.double().numpy().mean(1) + 1) / 2).reshape(len(maps), -1)


def test_the_table_says_what_each_metric_is() -> None:
    assert list(metrics.METRICS) == ["l1", "cc", "sim", "kl", "psnr", "ssim"]
    assert [name for name, metric in metrics.METRICS.items() if metric.primary] == ["l1", "cc", "sim", "kl"]
    for name, metric in metrics.METRICS.items():
        assert metric.name == name
        assert metric.formula and metric.channels
        assert metric.range[0] < metric.range[1]
    lower = {name for name, metric in metrics.METRICS.items() if metric.better == "lower"}
    assert lower == {"l1", "kl"}
    with pytest.raises(AttributeError):
        metrics.METRICS["l1"].name = "l2"  # type: ignore[misc]


def test_l1_and_psnr_match_numpy_and_skimage() -> None:
    prediction, truth = _maps(seed=1), _maps(seed=2)
    p, t = prediction.double().numpy(), truth.double().numpy()
    np.testing.assert_allclose(metrics.l1(prediction, truth), np.abs(p - t).mean((1, 2, 3)), rtol=1e-6)
    expected = [peak_signal_noise_ratio(a, b, data_range=2) for a, b in zip(t, p, strict=True)]
    np.testing.assert_allclose(metrics.psnr(prediction, truth), expected, rtol=1e-6)


def test_intensity_metrics_match_scipy() -> None:
    prediction, truth = _maps(seed=3), _maps(seed=4)
    p, t = _brightness(prediction), _brightness(truth)
    correlations = [pearsonr(a, b).statistic for a, b in zip(p, t, strict=True)]
    np.testing.assert_allclose(metrics.cc(prediction, truth), correlations, rtol=1e-5)
    p, t = p / p.sum(1, keepdims=True), t / t.sum(1, keepdims=True)
    np.testing.assert_allclose(metrics.kl(prediction, truth), entropy(t, p, axis=1), rtol=1e-6)
    # min(a, b) = (a + b - |a - b|) / 2, and both sum to one.
    np.testing.assert_allclose(metrics.sim(prediction, truth), 1 - np.abs(p - t).sum(1) / 2, rtol=1e-6)


@pytest.mark.parametrize("size", [(11, 11), (11, 19), (40, 33)])
def test_ssim_matches_skimage(size: tuple[int, int]) -> None:
    truth = _maps(height=size[0], width=size[1], seed=5)
    prediction = (truth + 0.3 * _maps(height=size[0], width=size[1], seed=6)).clamp(-1, 1)
    expected = [
        structural_similarity(
            (a + 1) / 2,
            (b + 1) / 2,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(prediction.double().numpy(), truth.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(prediction, truth), expected, rtol=1e-6)


def test_closed_forms_of_two_constants() -> None:
    # Intensities 0.75 and 0.25: SSIM is its luminance term alone.
    scores = metrics.score(_flat(0.5), _flat(-0.5))
    assert scores["l1"].item() == 1.0
    assert scores["psnr"].item() == pytest.approx(10 * math.log10(4), rel=1e-6)
    assert scores["ssim"].item() == pytest.approx((2 * 0.1875 + 1e-4) / (0.625 + 1e-4), rel=1e-6)
    assert scores["sim"].item() == pytest.approx(1.0)
    assert scores["kl"].item() == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(scores["cc"].item())


def test_closed_forms_of_halves() -> None:
    # The truth is white on the left half, the prediction white on the left three quarters.
    truth, prediction = _flat(-1.0), _flat(-1.0)
    truth[..., :8] = 1.0
    prediction[..., :12] = 1.0
    scores = metrics.score(prediction, truth)
    assert scores["l1"].item() == 0.5
    assert scores["sim"].item() == pytest.approx(2 / 3)
    assert scores["kl"].item() == pytest.approx(math.log(1.5))
    assert scores["cc"].item() == pytest.approx((0.5 - 0.375) / math.sqrt(0.25 * 0.1875))


def test_identical_maps() -> None:
    maps = _maps()
    scores = metrics.score(maps, maps.clone())
    best = {"l1": 0.0, "cc": 1.0, "sim": 1.0, "kl": 0.0, "psnr": metrics.PSNR_CAP, "ssim": 1.0}
    for name, value in best.items():
        np.testing.assert_allclose(scores[name], value, atol=1e-6, err_msg=name)
    # Anything closer than the cap says the cap, and the cap is not reached by ordinary rounding to 8 bits.
    assert metrics.psnr(maps, maps + 1e-6).max() == metrics.PSNR_CAP
    assert metrics.psnr((maps * 127.5).round() / 127.5, maps).max() < 60


def test_kl_takes_the_truth_first_and_its_epsilon_twice() -> None:
    # One bright pixel each, apart: q = 1 where p = 0.
    truth, prediction = _flat(-1.0), _flat(-1.0)
    truth[..., 0, 0] = 1.0
    prediction[..., 3, 3] = 1.0
    greatest = math.log(EPS + 1 / EPS)
    assert metrics.kl(prediction, truth).item() == pytest.approx(greatest, rel=1e-6)
    assert metrics.METRICS["kl"].range[1] == pytest.approx(greatest)
    # Half of the truth's mass is where the prediction has all of its own: turned round, the value differs.
    truth[..., 3, 3] = 1.0
    forwards, backwards = metrics.kl(prediction, truth).item(), metrics.kl(truth, prediction).item()
    assert forwards == pytest.approx(0.5 * math.log(EPS + 0.5 / EPS) + 0.5 * math.log(0.5), rel=1e-6)
    assert backwards == pytest.approx(math.log(2), rel=1e-6)


def test_black_maps() -> None:
    black, maps = _flat(-1.0), _maps(1, height=16, width=16)
    prediction_is_black, truth_is_black = metrics.score(black, maps), metrics.score(maps, black)
    for name in ("cc", "sim"):
        assert math.isnan(prediction_is_black[name].item()), name
        assert math.isnan(truth_is_black[name].item()), name
    assert math.isnan(truth_is_black["kl"].item())
    q = _brightness(maps)[0]
    q = q / q.sum()
    assert prediction_is_black["kl"].item() == pytest.approx(float((q * np.log(q / EPS)).sum()), rel=1e-6)
    for scores in (prediction_is_black, truth_is_black):
        assert all(scores[name].isfinite().all() for name in ("l1", "psnr", "ssim"))


def test_rounding_noise_is_not_structure() -> None:
    # One float32 step apart here and there, as resizing leaves a flat map.
    maps = _maps(1, height=16, width=16)
    for value in (-1.0, -0.5, 0.7):
        noisy = torch.where(_maps(1, height=16, width=16, seed=7) > 0, value, value + 6e-8)
        assert math.isnan(metrics.cc(noisy, maps).item())
        assert math.isnan(metrics.cc(maps, noisy).item())
    nearly_black = torch.where(_maps(1, height=16, width=16, seed=7) > 0, -1.0, -1 + 6e-8)
    assert (nearly_black != -1).any()
    assert math.isnan(metrics.sim(nearly_black, maps).item())
    assert math.isnan(metrics.kl(maps, nearly_black).item())
    assert torch.equal(metrics.kl(nearly_black, maps), metrics.kl(_flat(-1.0), maps))


def test_faint_structure_on_a_bright_ground_correlates_exactly() -> None:
    # The mean dwarfs the structure ten thousandfold: raw sums in float32 would return noise.
    pattern = _maps(1, channels=1, height=64, width=64, seed=8)
    faint = 0.8 + 1e-4 * pattern
    expected = pearsonr(_brightness(faint)[0], _brightness(pattern)[0]).statistic
    assert expected > 0.999
    assert metrics.cc(faint, pattern).item() == pytest.approx(expected, abs=1e-6)
    assert metrics.cc(-faint, pattern).item() == pytest.approx(-expected, abs=1e-6)


def test_values_stay_in_their_ranges_and_do_not_depend_on_the_batch() -> None:
    prediction = torch.cat([_maps(3, height=16, width=16, seed=9), _flat(-1.0), _flat(1.0)])
    truth = torch.cat([_maps(3, height=16, width=16, seed=10), _flat(1.0), _flat(-1.0)])
    scores = metrics.score(prediction, truth)
    for name, metric in metrics.METRICS.items():
        assert scores[name].shape == (5,) and scores[name].dtype == torch.float32
        defined = scores[name][~scores[name].isnan()]
        assert len(defined)
        assert metric.range[0] - 1e-6 <= defined.min() <= defined.max() <= metric.range[1] + 1e-6
        for i in range(5):
            alone = metric.function(prediction[i : i + 1], truth[i : i + 1])
            np.testing.assert_allclose(scores[name][i : i + 1], alone, rtol=1e-6, err_msg=name)
    assert scores["l1"][3:].tolist() == [2.0, 2.0]


def test_maps_smaller_than_the_window_have_every_metric_but_ssim() -> None:
    scores = metrics.score(_maps(2, height=10, width=40), _maps(2, height=10, width=40, seed=11))
    assert scores["ssim"].isnan().all() and scores["ssim"].dtype == torch.float32
    assert all(scores[name].isfinite().all() for name in ("l1", "cc", "sim", "kl", "psnr"))


def test_nothing_waits_for_the_device() -> None:
    # A meta tensor has no values: whatever reads one raises.
    maps = torch.empty(2, 3, 16, 16, device="meta")
    for values in metrics.score(maps, metrics.resize(maps, (16, 16))).values():
        assert values.shape == (2,)


def test_shapes_must_agree() -> None:
    for metric in metrics.METRICS.values():
        with pytest.raises(AssertionError):
            metric.function(_maps(1), _maps(2))


def test_summarise_excludes_and_counts_what_is_undefined() -> None:
    assert metrics.summarise(np.array([1.0, math.nan, 2.0, 6.0], np.float32)) == metrics.Summary(3.0, 3, 1)
    assert metrics.summarise(np.full(3, math.nan, np.float32)) == metrics.Summary(None, 0, 3)
    assert metrics.summarise(np.zeros(0, np.float32)) == metrics.Summary(None, 0, 0)
    # Summed in float32, the last digits would go.
    mean = metrics.summarise(np.full(3_000_000, 0.1, np.float32)).mean
    assert mean == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_resize_averages_when_shrinking_keeps_the_range_and_leaves_equal_sizes() -> None:
    # A triangle filter of twice the width over a chequerboard of +-1 averages to zero inside.
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    board = ((rows + columns) % 2 * 2.0 - 1).expand(1, 3, 32, 32)
    small = metrics.resize(board, (8, 16))
    assert small.shape == (1, 3, 8, 16)
    assert small[..., 1:-1, 1:-1].abs().max() < 1e-6
    assert torch.equal(metrics.resize(board, (32, 32)), board)
    assert torch.equal(metrics.resize(board * 3, (32, 32)), board)
    for value in (-1.0, 1.0):
        assert metrics.resize(_flat(value), (7, 40)).abs().max() <= 1.0
    # Enlarging 1 x 2 to 1 x 4 with corners not aligned samples at -0.25, 0.25, 0.75, 1.25 (held).
    ramp = torch.tensor([[[[-1.0, 1.0]]]])
    np.testing.assert_allclose(metrics.resize(ramp, (1, 4)).flatten(), [-1.0, -0.5, 0.5, 1.0], atol=1e-6)


def test_a_resized_black_map_is_still_black() -> None:
    black = metrics.resize(_flat(-1.0, (1, 3, 37, 53)), (16, 16))
    assert math.isnan(metrics.sim(black, _maps(1, height=16, width=16)).item())


def test_reading_the_definitions_needs_no_torch() -> None:
    code = "import sys; from memdist.metrics import METRICS as m; assert 'torch' not in sys.modules; print(*m)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["l1", "cc", "sim", "kl", "psnr", "ssim"]
