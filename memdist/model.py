"""The contract between a model and everything that trains, scores and samples it.

A model says which networks it has, which losses move them and in what order, and how a picture becomes a map. It knows
nothing of loops, devices, strategies or files; they know nothing of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

Nets = Mapping[str, Callable[..., Tensor]]
"""Networks by name: during training wrapped or bare, as the strategy needs; call them, nothing else."""

Scratch = dict[str, Tensor]
"""Detached tensors of one micro-batch that a later update of the same step may use again."""


class Pair(NamedTuple):
    """A batch of picture / map pairs."""

    image: Tensor
    """NCHW float32 in [-1, 1]."""
    map: Tensor
    """NCHW float32 in [-1, 1], aligned with the picture."""
    seed: Tensor
    """int64 [N]. Training: hash of the run's seed and the position in the stream; evaluation and sampling: hash of the run's
    seed, the content of the picture and the replicate."""


class Loss(NamedTuple):
    """What an update descends, and what it reports."""

    value: Tensor
    """Scalar, the mean over the micro-batch."""
    logs: Mapping[str, Tensor]
    """Detached scalars, means over the micro-batch, by the name they are logged under (`generator/l1`)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is told of the data."""

    size: int
    """Height and width of pictures and maps in pixels."""
    image_channels: int
    map_channels: int
    mean_map: Tensor | None = None
    """[map_channels, size, size] in [-1, 1]: mean over the training split; given when `Model.wants_mean_map`."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a model that samples is asked to; others take no notice."""

    sampler: str = "ddim"
    """Name in `memdist.diffusion.sampling.SAMPLERS`."""
    steps: int = 20
    """Network evaluations of one map at most, 1 .. trained noise steps."""
    eta: float | None = None
    """Noise that ddim and dpmpp_3m_sde add at each step, as a share of the ancestral one, 0 .. 1; None: the sampler's own."""
    spacing: Literal["time", "snr", "karras"] = "time"
    """How noise levels are spread (`memdist.diffusion.schedule.levels`)."""
    bound: Literal["clamp", "threshold", "none"] = "clamp"
    """What is done to predicted clean maps (`memdist.diffusion.steps.bounded`)."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """One optimiser step: the network that moves and the loss that moves it. Every other network is frozen meanwhile."""

    net: str
    loss: Callable[[Nets, Pair, Scratch], Loss]
    every: int = 1
    """Taken at each `every`-th step (Wasserstein: the critic 1, the generator 5)."""
    after: Callable[[Tensor], None] | None = None
    """Element-wise and in place, on each weight, after a step that was taken (weight clipping)."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """A logged value below which a model has collapsed, if it stays there (`divergence.collapse_steps`)."""

    net: str
    """The network whose update logs it, and whose optimiser's settings may help."""
    log: str
    """Name in `Loss.logs`."""
    below: float
    """Collapsed is what lies below this value."""
    of: str | None = None
    """Name of another value, logged beside it, of which `below` is a share; None: `below` stands for itself."""
    sentence: str
    """What it means, as a clause."""
    maps: bool = False
    """Whether the range of the maps that validation predicts, beside that of the true ones, stands for values that steps do not
    log: a micro-batch of one picture has no other to differ from."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Networks and the updates of one step, in order."""

    nets: Mapping[str, nn.Module]
    updates: tuple[Update, ...]
    eager: Mapping[str, str] = field(default_factory=dict)
    """Networks that cannot be compiled, with the sentence that says why."""
    twice: tuple[str, ...] = ()
    """Networks whose gradient is differentiated again: a strategy that gathers block by block gathers them as a whole."""


class Model(ABC):
    """A conditional image-to-image model, made from its own frozen settings."""

    Config: ClassVar[type[Any]]
    """Its settings: a `memdist.config.Settings` whose field `name` is the registry's name."""
    networks: ClassVar[tuple[str, ...]]
    """Names of its networks; each has its optimiser under `optim.<name>`."""
    scores: ClassVar[tuple[str, ...]] = ()
    """Names of the values that `score` gives; lower is better."""
    image_channels: ClassVar[tuple[int, ...]] = (1, 3)
    """Channels that a picture may have."""
    map_channels: ClassVar[tuple[int, ...]] = (1, 3)
    """Channels that a map may have."""

    samples: ClassVar[bool] = False
    """Whether `predict` takes notice of `Sampling`."""

    def __init__(self, config: Any, task: Task) -> None:
        """Check that the settings and the data go together; raises ConfigError with the sentence that says why not."""
        self.config = config
        self.task = task

    @classmethod
    def unfit(cls, task: Task) -> str | None:
        """Why the data have other channels than the model takes, as the rest of a sentence; None where they fit."""
        for key in ("image_channels", "map_channels"):
            given, takes = getattr(task, key), getattr(cls, key)
            if given not in takes:
                allowed = " or ".join(map(str, takes))
                return f"does not take data.{key} = {given}: set data.{key}={allowed}"
        return None

    @property
    def wants_mean_map(self) -> bool:
        """Whether `Task.mean_map` is needed."""
        return False

    @abstractmethod
    def stage(self) -> Stage:
        """Build networks, initialised from torch's global generator, which the caller has seeded and will restore."""

    @abstractmethod
    def averaged(self) -> tuple[str, ...]:
        """Names of the networks that predict, and so have an exponential moving average when `ema.decay` is set."""

    def refuses(self) -> Mapping[str, str]:
        """Settings that cannot work (`compile`, `fp16`, `bf16`, a strategy), with the sentence that says why."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """Sentences that a person should read before the run starts (exemptions from exactness)."""
        return ()

    def floors(self) -> tuple[Floor, ...]:
        """Values that stay above a floor while training is sound."""
        return ()

    def check(self, sampling: Sampling) -> None:
        """Raise a ConfigError when `predict` cannot sample so; called before anything is trained or predicted."""
        return None

    def evaluations(self, sampling: Sampling) -> int:
        """How often `predict` calls a network to make one map."""
        return 1

    def slowest(self) -> Sampling | None:
        """The sampling that others are measured against, with all that was trained; None for a model that does not sample."""
        return None

    @abstractmethod
    def predict(self, nets: Nets, image: Tensor, seed: Tensor, sampling: Sampling) -> Tensor:
        """Map of a picture: NCHW float32 in [-1, 1] from NCHW float32 in [-1, 1] and int64 seeds [N]."""

    def score(self, nets: Nets, batch: Pair) -> Mapping[str, Tensor]:
        """Cheap values a picture, float32 [N] each, logged every epoch beside the house's metrics of `predict`."""
        return {}
