"""How far the distribution of predicted maps lies from that of true maps: FID, or KID where pictures are few.

FID (Heusel et al. 2017) is the Fréchet distance of two Gaussians fitted to Inception features; with fewer pictures than
features its covariances are singular and it is biased. Below FEWEST pictures KID (Bińkowski, Sutherland, Arbel and Gretton
2018) stands in its place: the unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3, its mean and
standard deviation over SUBSETS random subsets. Both are torchmetrics'; the features come from a local file of weights.

Maps are compared at the size at which all scores are taken, as the 8-bit pictures that would be written; grey ones are
repeated to three channels.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memdist import draws, foreign
from memdist.data import loader
from memdist.data.pairs import content_hash
from memdist.distributed.strategy import Strategy
from memdist.errors import CheckpointError, ConfigError
from memdist.nets.inception import LAYER, Inception
from memdist.train import score, validate

FEWEST = 2048
"""Pictures from which on FID is taken: as many as there are features."""
SUBSETS = 100
"""Random subsets over which KID is averaged."""
SUBSET = 1000
"""Pictures of a subset at most; half of all where they are fewer than twice as many, so that subsets differ."""
LARGEST = 2**30
"""Bytes of a file of weights."""
_AT_ONCE = 16
_TRUTH = ""
_WELL_KNOWN = "pt_inception-2015-12-05-6726825d.pth, or the same as .safetensors"


UNASKED = f"FID and KID are not taken: name the file of Inception's weights with eval.fid_weights=FILE ({_WELL_KNOWN})"
"""What a person reads who named no weights."""


@dataclass(frozen=True)
class Extractor:
    """A network that gives features, and what a reader of its figures must know."""

    net: nn.Module
    """uint8 [N, 3, H, W] -> float32 [N, width]."""
    width: int
    layer: str
    sha256: str

    @torch.no_grad()
    def features(self, maps: Tensor) -> Tensor:
        """Maps NCHW in [-1, 1], C 1 or 3 -> float64 [N, width]; where all are one map, it is seen once."""
        pictures = validate.to_bytes(maps)
        same = len(pictures) > 1 and bool((pictures == pictures[:1]).all())
        seen = (pictures[:1] if same else pictures).expand(-1, 3, -1, -1).to(maps.device)
        found = torch.cat([self.net(part) for part in torch.split(seen, _AT_ONCE)])
        return found.double().expand(len(maps), -1) if same else found.double()


def check(path: Path | None) -> None:
    """Raise ConfigError where there is no such file, or torchmetrics is not installed; None asks for nothing."""
    if path is None:
        return
    if importlib.util.find_spec("torchmetrics") is None:
        raise ConfigError(
            "eval.fid_weights is set and needs torchmetrics, which is not installed: `pip install 'memdist[fid]'`, or leave "
            "eval.fid_weights out"
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"eval.fid_weights = {path} {what}: name the file of Inception's weights ({_WELL_KNOWN})")


def load(path: Path | None, device: torch.device) -> Extractor | None:
    """Read Inception's weights; a ConfigError says what is wrong with the file. None gives None."""
    check(path)
    if path is None:
        return None
    if path.stat().st_size > LARGEST:
        raise ConfigError(
            f"eval.fid_weights = {path} has {path.stat().st_size} bytes, far more than Inception's weights; give {_WELL_KNOWN}"
        )
    sha256 = content_hash(path)
    try:
        state = foreign.tensors(path)
    except CheckpointError as error:
        raise ConfigError(f"eval.fid_weights: {error}; Inception's weights are {_WELL_KNOWN}") from error
    with torch.device("meta"):
        net = Inception()
    _fits(path, state, net.state_dict())
    # Counters of batches seen, which nothing reads; some writers leave them out.
    counters = {name: torch.zeros_like(t, device="cpu") for name, t in net.state_dict().items() if _counts(name)}
    net.load_state_dict({**counters, **state}, assign=True)
    net.to(device).float().requires_grad_(False).eval()
    return Extractor(net, net.num_features, f"{LAYER} ({net.num_features})", sha256)


def _fits(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ConfigError unless the file holds Inception's tensors and no others."""
    missing = [name for name in wanted if name not in state and not _counts(name)]
    odd = [str(name) for name in state if name not in wanted]
    other = [n for n, t in wanted.items() if n in state and not _alike(state[n], t)]
    for names, what in ((missing, "lacks"), (odd, "has"), (other, "has, in another shape or type,")):
        if names:
            raise ConfigError(
                f"eval.fid_weights = {path} is not Inception's of FID: it {what} {names[0]!r}; give {_WELL_KNOWN}"
            )


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()


def _counts(name: str) -> bool:
    return name.endswith("num_batches_tracked")


class Distance:
    """FID or KID of several predictors on one split, gathered while it goes by.

    FID is held as sums, in memory that does not grow with the pictures; KID as the features of fewer than FEWEST of them.
    """

    def __init__(
        self,
        extractor: Extractor,
        predictors: Sequence[str],
        n: int,
        truth: Callable[[int], Tensor],
        strategy: Strategy,
    ) -> None:
        """For a split of `n` pictures; `truth(row)` is the true map, [C, h, w] in [-1, 1], on the device."""
        self._extractor, self._names, self._n = extractor, tuple(predictors), n
        self._truth, self._strategy = truth, strategy
        self.kind = "fid" if n >= FEWEST else "kid"
        # float64, which Apple's GPUs lack.
        self._device = torch.device("cpu") if strategy.device.type == "mps" else strategy.device
        self._fids = {name: self._fid() for name in self._names} if self.kind == "fid" else {}
        self._kept: dict[str, list[Tensor]] = {name: [] for name in (_TRUTH, *self._names)}
        self._rows: list[Tensor] = []
        self._lost = dict.fromkeys(self._names, False)

    def see(self, part: loader.Part, maps: Mapping[str, Tensor]) -> None:
        """Take a batch of this rank's; padding is passed over."""
        rows = part.rows[: part.valid]
        # Of one shape on every rank, so that they can be gathered.
        found = {name: torch.zeros(len(part.rows), self._extractor.width, dtype=torch.float64) for name in self._kept}
        for name in self._names:
            for index, resized, truths in score.by_size(maps[name][: part.valid], rows, self._truth):
                places = index.cpu()
                found[name][places] = self._extractor.features(resized).cpu()
                # As a picture of 8 bits a map that is no number would pass for black.
                found[name][places[~resized.isfinite().flatten(1).all(1).cpu()]] = math.nan
                if name == self._names[0]:
                    found[_TRUTH][places] = self._extractor.features(truths).cpu()
        for name, metric in self._fids.items():
            metric.update(found[_TRUTH][: part.valid].to(self._device), real=True)
            given = found[name][: part.valid]
            # Its decomposition is not asked of what is no number: `record` leaves the figure out.
            self._lost[name] |= not bool(given.isfinite().all())
            metric.update(given.nan_to_num(0.0).to(self._device), real=False)
        if self.kind == "kid":
            self._rows.append(torch.from_numpy(np.where(np.arange(len(part.rows)) < part.valid, part.rows, -1)))
            for name, features in found.items():
                self._kept[name].append(features)

    def _fid(self) -> Any:
        from torchmetrics.image.fid import FrechetInceptionDistance

        strategy = self._strategy
        return FrechetInceptionDistance(
            feature=_Given(self._extractor.width),
            # Its sums are added over ranks as everything else is.
            distributed_available_fn=lambda: strategy.world > 1,
            dist_sync_fn=lambda value, group: list(strategy.gather(value[None])),
        ).to(self._device)

    def record(self) -> dict[str, Any]:
        """The figures and what they rest on, as JSON; every rank calls it, and all have the same."""
        lost = self._strategy.gather(torch.tensor([list(self._lost.values())], device=self._device)).any(0).tolist()
        fids = [metric.compute() for metric in self._fids.values()]
        figures = {
            name: _figures(math.nan if gone else fid, None)
            for name, fid, gone in zip(self._names, fids, lost, strict=False)
        }
        figures = figures or self._kids()
        record: dict[str, Any] = {
            "kind": self.kind,
            "n": self._n,
            "layer": self._extractor.layer,
            "weights_sha256": self._extractor.sha256,
        }
        if self.kind == "kid":
            record |= {"subsets": SUBSETS, "subset": _subset(self._n)}
        model, *others = self._names
        return {**record, "model": figures[model], "trivial": {name: figures[name] for name in others}}

    def _kids(self) -> dict[str, dict[str, float | None]]:
        """Each predictor's by one rank, of the features of all in the order of their rows."""
        if _subset(self._n) < 2:
            return {name: {"mean": None, "std": None} for name in self._names}
        strategy = self._strategy
        rows = self._everywhere(self._rows)
        order = torch.argsort(rows, stable=True)[int((rows < 0).sum()) :]
        features = {name: self._everywhere(parts)[order] for name, parts in self._kept.items()}
        found = torch.zeros(len(self._names), 2, dtype=torch.float64)
        for at in range(strategy.rank, len(self._names), strategy.world):
            found[at] = torch.tensor(kid(features[_TRUTH], features[self._names[at]]), dtype=torch.float64)
        whole = self._everywhere([found[None]]).sum(0).tolist()
        return {name: _figures(mean, std, least=None) for name, (mean, std) in zip(self._names, whole, strict=True)}

    def _everywhere(self, parts: Sequence[Tensor]) -> Tensor:
        return self._strategy.gather(torch.cat(list(parts)).to(self._device)).cpu()


def _figures(mean: Any, std: float | None, least: float | None = 0.0) -> dict[str, float | None]:
    """A figure as JSON; undefined is one that rests on maps that are no numbers."""
    mean = float(mean)
    if not math.isfinite(mean):
        return {"mean": None, "std": None}
    # Rounding may leave a distance of nothing a hair below nothing.
    return {"mean": mean if least is None else max(least, mean), "std": std}


def kid(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """KID of features [n, d] and its standard deviation, over random subsets that n alone decides; n >= 4."""
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():
        # It warns that it keeps features, which are bounded here.
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save", UserWarning)
        metric = KernelInceptionDistance(
            feature=_Given(real.shape[1]),
            subsets=SUBSETS,
            subset_size=_subset(len(real)),
            distributed_available_fn=lambda: False,
        )
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.key("kid", len(real)) & (2**63 - 1))
        mean, std = metric.compute()
    return float(mean), float(std)


def _subset(n: int) -> int:
    return min(SUBSET, n // 2)


class _Given(nn.Module):
    """Stands where torchmetrics wants a network: the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """As they are."""
        return features


def sentence(record: Mapping[str, Any]) -> str:
    """What stands below a table of scores about FID or KID."""
    kind = record["kind"].upper()
    figures = {"model": record["model"], **record["trivial"]}
    told = ", ".join(f"{name} {_figure(figure)}" for name, figure in figures.items())
    how = f"{record['n']:,} pictures, {record['layer']}, weights {record['weights_sha256'][:8]}"
    if record["kind"] == "kid":
        how += f", mean ± standard deviation of {record['subsets']} subsets of {record['subset']}"
        how += f"; KID and not FID, which needs {FEWEST:,} pictures"
        how += " (undefined below 4)" if record["subset"] < 2 else ""
    return f"{kind} to the true maps (lower is better): {told} ({how})"


def _figure(figure: Mapping[str, float | None]) -> str:
    if figure["mean"] is None:
        return "undefined"
    return f"{figure['mean']:.4f}" + (f" ± {figure['std']:.4f}" if figure["std"] is not None else "")
