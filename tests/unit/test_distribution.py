"""FID and KID against closed forms and another computation, with a network that needs no weights."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memdist.distributed.single import Single
from memdist.errors import ConfigError
from memdist.model import Pair
from memdist.nets import inception
from memdist.nets.inception import Inception
from memdist.train import distribution
from memdist.train.distribution import FEWEST, Distance, Extractor
from tests.looks import EXTRACTOR, Quarters

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "inception.json").read_text())


def _maps(n: int, seed: int, shift: float = 0.0) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(np.clip(random.normal(shift, 0.3, (n, 1, 6, 6)), -1, 1)).float()


def _record(predictions: dict[str, Tensor], truth: Tensor, batch: int = 7) -> dict[str, Any]:
    """As `evaluate` does it, in batches of which the last is filled up from the start."""
    from memdist.data.loader import Part

    strategy = Single(torch.device("cpu"), "fp32")
    distance = Distance(EXTRACTOR, list(predictions), len(truth), lambda row: truth[row], strategy)
    for start in range(0, len(truth), batch):
        rows = np.arange(start, start + batch) % len(truth)
        pair = Pair(torch.zeros(batch, 3, 1, 1), truth[rows], torch.zeros(batch, dtype=torch.int64))
        part = Part(pair, rows, min(batch, len(truth) - start))
        distance.see(part, {name: maps[rows] for name, maps in predictions.items()})
    return distance.record()


def _features(maps: Tensor) -> np.ndarray:
    return EXTRACTOR.features(maps).numpy()


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate, pair by pair; the cross term over all pairs."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    m = len(x)
    within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y))) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


def test_kid_is_the_mean_of_another_computation_over_its_subsets() -> None:
    truth, predicted = _maps(60, 0), _maps(60, 1, 0.2)
    record = _record({"model": predicted, "same": truth}, truth)
    assert (record["kind"], record["n"], record["subsets"], record["subset"]) == ("kid", 60, 100, 30)
    assert record["layer"] == "quarters (4)" and record["weights_sha256"] == "0" * 64
    x, y = _features(truth), _features(predicted)
    random = np.random.default_rng(0)
    draws = [_mmd(x[random.permutation(60)[:30]], y[random.permutation(60)[:30]]) for _ in range(400)]
    mean, std = record["model"]["mean"], record["model"]["std"]
    assert mean == pytest.approx(np.mean(draws), abs=4 * std / 10) and std == pytest.approx(np.std(draws), rel=0.3)
    assert mean > 4 * abs(record["trivial"]["same"]["mean"])
    # And to the digit, where a subset is everything: only the order differs.
    monkey = pytest.MonkeyPatch()
    monkey.setattr(distribution, "_subset", lambda n: n)
    whole, spread = distribution.kid(torch.from_numpy(x), torch.from_numpy(y))
    monkey.undo()
    assert whole == pytest.approx(_mmd(x, y), rel=1e-9) and spread == pytest.approx(0, abs=1e-9)


def test_kid_depends_on_neither_batch_nor_the_state_of_any_generator() -> None:
    truth, predicted = _maps(23, 2), _maps(23, 3, -0.3)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = _record({"model": predicted}, truth, batch=7)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert _record({"model": predicted}, truth, batch=23) == first


def test_fid_of_known_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "FEWEST", 40)
    truth = _maps(40, 4)
    record = _record({"model": _maps(40, 5, 0.4), "same": truth, "darker": truth - 0.1}, truth.clamp(-0.8, 0.8))
    assert record["kind"] == "fid" and "subset" not in record
    x = _features(truth.clamp(-0.8, 0.8))
    for name, maps in (("model", _maps(40, 5, 0.4)), ("same", truth), ("darker", truth - 0.1)):
        y = _features(maps)
        # Fréchet's distance with the square root of the product by its symmetric form.
        a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        values, vectors = np.linalg.eigh(a)
        root = vectors * np.sqrt(values.clip(0)) @ vectors.T
        cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
        expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross
        figure = record["model"] if name == "model" else record["trivial"][name]
        assert figure["mean"] == pytest.approx(expected, rel=1e-6, abs=1e-9), name
        assert figure["std"] is None


def test_fid_of_gaussians_in_closed_form() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    # Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2, with moments that are exact.
    base = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64) * (3 / 4) ** 0.5
    metric = FrechetInceptionDistance(feature=distribution._Given(2))
    metric.update(base * torch.tensor([1.0, 2.0]), real=True)
    metric.update(base * torch.tensor([3.0, 2.5]) + torch.tensor([1.0, -2.0]), real=False)
    assert float(metric.compute()) == pytest.approx(1 + 4 + 4 + 0.25, rel=1e-9)


def test_identical_maps_are_at_distance_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "FEWEST", 20)
    truth = _maps(20, 6)
    assert _record({"model": truth}, truth)["model"]["mean"] == pytest.approx(0, abs=1e-9)


def test_three_pictures_have_no_kid() -> None:
    record = _record({"model": _maps(3, 7)}, _maps(3, 8))
    assert record["model"] == {"mean": None, "std": None}
    assert "undefined" in distribution.sentence(record)


def test_constant_predictions_are_seen_once() -> None:
    seen = []

    class Counting(Quarters):
        def forward(self, pictures: Tensor) -> Tensor:
            seen.append(len(pictures))
            return super().forward(pictures)

    extractor = Extractor(Counting(), 4, "", "")
    one = _maps(1, 9)
    assert torch.equal(extractor.features(one.expand(5, -1, -1, -1)), extractor.features(one).expand(5, -1))
    assert extractor.features(_maps(20, 9)).shape == (20, 4)
    assert seen == [1, 1, 16, 4]


def _by_formula(net: Inception) -> dict[str, Tensor]:
    """Weights that any machine makes the same: whole numbers, scaled so that the signal neither dies nor grows."""
    state = {}
    for place, (name, tensor) in enumerate(net.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        numbers = (torch.arange(tensor.numel()) * 7919 + place * 104729) % 10007 / 10007
        if tensor.dim() > 1:
            numbers = (numbers - 0.5) * (24 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_mean", "bias")):
            numbers = (numbers - 0.5) * 0.2
        else:
            numbers = numbers + 0.5
        state[name] = numbers.reshape(tensor.shape).float()
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(_by_formula(Inception()), path)
    return path


def test_inceptions_features_are_those_of_the_release(weights: Path) -> None:
    extractor = distribution.load(weights, torch.device("cpu"))
    assert extractor is not None and extractor.layer == "pool3 (2048)" and extractor.width == 2048
    for height, width in GOLDEN["sizes"]:
        pictures = (torch.arange(3 * height * width) * 31 % 256).to(torch.uint8).reshape(1, 3, height, width)
        features = extractor.net(pictures)[0].double()
        expected = GOLDEN[f"{height} x {width}"]
        assert features.sum() == pytest.approx(expected["sum"], rel=1e-5)
        np.testing.assert_allclose(features[:: 2048 // 8], expected["features"], rtol=1e-3, atol=1e-4)


def test_pictures_are_enlarged_as_tensorflow_1_did() -> None:
    # Pixel i of 4 lies at i / 2 of the two: the last is held.
    ramp = torch.tensor([[[[0.0, 10.0]]]])
    assert inception.enlarge(ramp, 4)[0, 0].tolist() == [[0.0, 5.0, 10.0, 10.0]] * 4
    same = torch.rand(1, 3, 299, 299)
    assert torch.equal(inception.enlarge(same, 299), same)


def test_weights_as_safetensors_are_the_same(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = torch.load(weights, weights_only=True)
    save_file(state, tmp_path / "w.safetensors")
    found = distribution.load(tmp_path / "w.safetensors", torch.device("cpu"))
    assert found is not None
    assert all(torch.equal(found.net.state_dict()[name], tensor) for name, tensor in state.items())


def _save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


class Bad:
    """What only unpickling could make."""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "absent.pth", "does not exist"),
        (lambda p: p, "is a folder"),
        (lambda p: (p / "w.pth").write_text("words") and p / "w.pth", "is no checkpoint of PyTorch"),
        (lambda p: (p / "w.safetensors").write_text("words") and p / "w.safetensors", "is no safetensors file"),
        (lambda p: _save(p / "w.pth", {"a": Bad()}), "would have to run code"),
        (lambda p: _save(p / "w.pth", [torch.zeros(1)]), "holds no weights by name"),
        (lambda p: _save(p / "w.pth", {"a": torch.zeros(1)}), "lacks 'Conv2d_1a_3x3.conv.weight'"),
        (lambda p: _save(p / "w.pth", {**_by_formula(Inception()), "AuxLogits": torch.zeros(1)}), "has 'AuxLogits'"),
        (
            lambda p: _save(p / "w.pth", {**_by_formula(Inception()), "fc.bias": torch.zeros(1000)}),
            "in another shape or type, 'fc.bias'",
        ),
        (
            lambda p: _save(p / "w.pth", {n: t.long() for n, t in _by_formula(Inception()).items()}),
            "in another shape or type, 'Conv2d_1a_3x3.conv.weight'",
        ),
        (
            lambda p: _save(p / "w.pth", {**_by_formula(Inception()), "fc.bias": torch.full((1008,), torch.nan)}),
            "values in 'fc.bias' that are no finite numbers",
        ),
        (
            lambda p: _save(p / "w.pth", {**_by_formula(Inception()), "fc.bias": torch.zeros(1008).to_sparse()}),
            "'fc.bias' in a form that is no plain tensor",
        ),
    ],
)
def test_what_are_no_weights_gets_a_sentence(make: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as told:
        distribution.load(make(tmp_path), torch.device("cpu"))
    assert "\n" not in str(told.value) and "eval.fid_weights" in str(told.value)


def test_without_torchmetrics_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs torchmetrics, which is not installed"):
        distribution.check(tmp_path / "w.pth")
    assert distribution.load(None, torch.device("cpu")) is None


@pytest.mark.parametrize("n", [60, FEWEST])
def test_maps_that_are_no_numbers_have_no_distance(n: int) -> None:
    truth, broken = _maps(n, 0), _maps(n, 1)
    broken[n // 2, 0, 0, 0] = float("nan")
    record = _record({"model": broken, "same": truth}, truth, batch=30)
    assert record["kind"] == ("fid" if n == FEWEST else "kid")
    assert record["model"] == {"mean": None, "std": None} and record["trivial"]["same"]["mean"] is not None
    json.dumps(record, allow_nan=False)
    assert "model undefined" in distribution.sentence(record)
