"""The groups of settings that every run has; each field with its meaning, unit and range."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from memdist.config.kinds import Count, Folder, Fraction, Positive, Seed, Settings, runtime


class Data(Settings):
    """Pairs of pictures and maps, and how they are split."""

    images: Folder | None = runtime(None)
    """Folder of pictures. Its content is part of the run's identity, its place is not."""
    maps: Folder | None = runtime(None)
    """Folder of maps with the pictures' stems; flat as `images`, or both with sub-folders train, val, test."""
    side_by_side: Folder | None = runtime(None)
    """Instead of `images` and `maps`: folder of pictures whose left half is the image and right half the map."""
    direction: Literal["AtoB", "BtoA"] = runtime("AtoB")
    """Of side_by_side: AtoB takes the left half for the image, BtoA the right."""
    csv: Folder | None = runtime(None)
    """Instead of `images` and `maps`: CSV file with columns image and map (paths, relative to the file's folder) and, if
    wanted, split (train, val, test) and group."""
    groups: Folder | None = runtime(None)
    """CSV file with columns stem and group: pairs of one group are never parted between splits."""
    fixations: Folder | None = runtime(None)
    """File of fixations that `evaluate` scores predictions against too, at the pictures' own size: an .npz of an array
    [N, 2 or more] (x, y in pixels of the picture, from 0) for each stem, or a .csv with the columns stem, x and y."""
    size: Annotated[int, Field(ge=1, le=2**14)] = 64
    """Height and width in pixels to which pictures and maps are resized for training."""
    image_channels: Literal[1, 3] = 3
    """Channels of a picture: 3 for colour, 1 for grey."""
    map_channels: Literal[1, 3] = 3
    """Channels of a map: 3 for colour, 1 for grey."""
    crop: bool = False
    """Take the largest centred square of each picture and of each map before it is resized; false squeezes the whole."""
    resize: Literal["area", "lanczos"] = "area"
    """How pictures are resized: area (exact mean over each new pixel; bilinear along a side that grows) or lanczos (sharper,
    may ring)."""
    map_resize: Literal["area", "lanczos"] = "area"
    """How maps are resized, as `resize`; area never overshoots, so that what is black stays black."""
    val: Fraction | Folder = 0.1
    """Validation split, where the data name none: fraction of all pairs (0 < f < 1), or a text file of stems, one a line."""
    test: Fraction | Folder = 0.2
    """Test split: fraction of all pairs (0 for none: scores are then marked as selected on), or a text file of stems."""
    train: Folder | None = None
    """Text file of the stems to train on; without it, all that are in neither val nor test."""
    split_seed: Seed = 0
    """Seed of the ranking by which fractions are cut; apart from `seed`, so that runs with other seeds share their split."""
    cache: Folder | None = runtime(None)
    """Folder of decoded pictures, shared by runs; default $MEMDIST_CACHE, else memdist in $XDG_CACHE_HOME or
    ~/.cache."""
    resident: Literal["auto", "device", "host"] = runtime("auto")
    """Where decoded pictures live: on the device, in host memory, or on the device when they fit in a quarter of what is free."""


class Augment(Settings):
    """Probabilities with which a training pair is changed; geometry is shared by picture and map."""

    flip: Fraction = 0.0
    """Mirror left and right, probability."""
    translation: Fraction = 0.9
    """Shift by up to an eighth of the size, zero (grey) padding, probability (DiffAugment)."""
    cutout: Fraction = 0.9
    """Blank a square of half the size, probability (DiffAugment)."""
    colour: Fraction = 0.0
    """Change the picture's brightness, saturation and contrast, probability (DiffAugment); never the map's."""


class Batch(Settings):
    """Pictures in one optimiser step."""

    size: Count = 16
    """Pictures in one optimiser step, over all ranks and micro-batches."""
    micro: Count | None = runtime(None)
    """Pictures one rank sends through the network at once; default size / ranks. size must be a multiple of micro x ranks."""


class Schedule(Settings):
    """Learning rate over the run, as a factor of `lr`."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    """constant; linear: 1 until `start`, then straight down to `final`; cosine: the same along half a cosine."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate first rises linearly from 0."""
    start: Fraction = 0.0
    """Fraction of the run's steps at which the decay starts."""
    final: Fraction = 0.0
    """Factor at the end of the run."""


class Optim(Settings):
    """Optimiser of one network."""

    name: Literal["sgd", "adam", "adamw", "adadelta"] = "adam"
    """sgd, adam, adamw (decoupled weight decay) or adadelta."""
    lr: Positive = 1e-3
    """Learning rate, > 0; never rescaled with batch or ranks."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the first and second moment, each in [0, 1); adam and adamw only."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum in [0, 1); sgd only."""
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Decay of the running averages in (0, 1); adadelta only."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty (adamw: decoupled), >= 0."""
    clip: Positive | None = None
    """Largest L2 norm of this network's gradient, > 0; null never clips."""
    schedule: Schedule = Schedule()
    """Learning rate over the run."""
    kernel: Literal["auto", "fused", "foreach", "loop"] = "auto"
    """Implementation: fused where it exists (sgd, adam, adamw), else foreach; loop is the plain one."""

    @pydantic.model_validator(mode="after")
    def _only_its_own(self) -> Optim:
        for field, owners in {"betas": ("adam", "adamw"), "momentum": ("sgd",), "rho": ("adadelta",)}.items():
            if self.name not in owners and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"without {field}, which belongs to {' and '.join(owners)} and not to {self.name}")
        if self.name == "adadelta" and self.kernel == "fused":
            raise ValueError("kernel=auto, foreach or loop: adadelta has no fused kernel")
        return self


class Ema(Settings):
    """Exponential moving average of the weights of networks that predict."""

    decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay a step in [0, 1), after a warm-up of (1 + step) / (10 + step); null keeps none."""


class Validate(Settings):
    """What is measured while training."""

    every: Count = 1
    """Epochs between two validations by predicted maps; cheap scores such as a denoising error are taken every epoch."""
    images: Count | None = None
    """Pictures of val that are predicted, by rank of a stable hash; null for all."""
    train_images: Count = 256
    """Pictures of train whose maps are predicted for train/l1, a fixed subset."""
    sampler: str = "ddim"
    """Sampler of a diffusion model; others take no notice."""
    steps: Count = 20
    """Network evaluations a picture, at most the trained noise steps."""
    batch: Count = 64
    """Pictures predicted at once on a rank; scores do not depend on it but for rounding."""


class Select(Settings):
    """What chooses the best checkpoint, and when training stops early."""

    metric: str = "val/l1"
    """A value of validation: val/l1, val/cc, val/sim, val/kl, val/psnr, val/ssim, or a score of the model's (val/loss)."""
    patience: Count | None = runtime(None)
    """Validations without a better value after which training stops; null never stops early."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Smallest change that counts as better, in the metric's unit."""


class Checkpoint(Settings):
    """What is kept on disk; best, last and the one before always are."""

    every: Count = runtime(1)
    """Epochs between two checkpoints."""
    every_minutes: Positive = runtime(10.0)
    """Minutes of training after which one is written within an epoch."""
    keep_every: Count | None = runtime(None)
    """Keep the checkpoint of every k-th epoch for good; null keeps best, last and the one before only."""


class Log(Settings):
    """What is reported while training."""

    every: Count = runtime(50)
    """Steps between two lines of training losses."""
    tensorboard: bool = runtime(True)
    """Write TensorBoard files into the run folder."""
    images: Annotated[int, Field(ge=0)] = runtime(8)
    """Pictures of val in the sample grid of each validation; 0 for none."""
    wandb: str | None = runtime(None)
    """Weights & Biases project to report to, if wandb is installed; null never."""


class Divergence(Settings):
    """When a training counts as gone wrong, and how it goes on. A loss that is no number always counts."""

    gradient: Annotated[float, Field(gt=1)] | None = runtime(1000.0)
    """A gradient norm this many times its running geometric mean, at that mean's highest, is an explosion; null: never."""
    warmup: Annotated[int, Field(ge=0, le=10**6)] = runtime(100)
    """Steps of a network before its gradient norm is judged."""
    collapse_steps: Count | None = runtime(1000)
    """Steps in a row below a floor of the model's (a discriminator's loss, the spread of predicted maps) that are a collapse;
    null: never."""
    rate: Annotated[float, Field(gt=0, lt=1)] = runtime(0.5)
    """Factor on all learning rates at each rollback, 0 < f < 1."""
    rollbacks: Count = runtime(3)
    """Rollbacks of a run, at most; then it stops."""


class Eval(Settings):
    """How predictions are scored at the end."""

    size: Count | None = None
    """Height and width in pixels at which maps are compared; null: the map's own size, its longer side at most 256."""
    sampler: str = runtime("ddim")
    """Sampler of a diffusion model (ancestral, ddim, dpmpp_2m, dpmpp_3m_sde, heun, unipc); others take no notice of it, nor of
    what follows down to `combine`."""
    steps: Count = runtime(50)
    """Network evaluations of a map, at most the trained noise steps; heun takes one fewer of an even number."""
    eta: Fraction | None = runtime(None)
    """Noise of ddim and dpmpp_3m_sde as a share of the ancestral one; null: ddim 0, dpmpp_3m_sde 1."""
    spacing: Literal["time", "snr", "karras"] = runtime("time")
    """Noise levels lie evenly in the trained table (time), in its log-SNR (snr), or in sigma^(1/7) (karras)."""
    bound: Literal["clamp", "threshold", "none"] = runtime("clamp")
    """Each predicted clean map is clamped to [-1, 1], thresholded at its 99.5th percentile, or left as it is."""
    samples: Annotated[int, Field(ge=1, le=1024)] = runtime(1)
    """Maps sampled for a picture (k), 1 .. 1024."""
    combine: Literal["mean", "median"] = runtime("mean")
    """What is made of k maps of a picture, pixel by pixel."""
    batch: Count | None = runtime(None)
    """Maps predicted at once on a rank; null: of a model that samples, as many as pay, found by trying and remembered in the
    run folder; of others 64."""
    compile: Literal["auto", "always", "never"] = runtime("auto")
    """Compile the network that predicts: auto where a model samples for longer than compiling takes."""
    precision: Literal["run", "fp32", "bf16", "fp16"] = runtime("run")
    """Arithmetic of the networks when they predict; run: that of training."""
    grid: Count = runtime(64)
    """Pictures that `--grid` shows."""
    fid_weights: Folder | None = runtime(None)
    """File of the Inception weights of FID (pt_inception-2015-12-05-6726825d.pth, or the same as .safetensors); with it
    `evaluate` also gives FID, or below 2,048 pictures KID."""


class Study(Settings):
    """What `evaluate --study` tries on val: each sampler with each number of evaluations and of samples."""

    samplers: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)] = runtime(
        ("ancestral", "ddim", "dpmpp_2m", "dpmpp_3m_sde", "heun", "unipc")
    )
    """Samplers of a diffusion model."""
    steps: Annotated[tuple[Count, ...], Field(min_length=1, max_length=64)] = runtime((1, 2, 4, 8, 16, 32))
    """Network evaluations of a map."""
    samples: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1, max_length=16)] = runtime(
        (1, 2, 4)
    )
    """Maps sampled for a picture (k)."""
    images: Count | None = runtime(None)
    """Pictures of val that are sampled, by rank of a stable hash; null for all."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = runtime(0.01)
    """The cheapest setting is chosen whose L1 is at most 1 + tolerance times that of the reference."""


class Init(Settings):
    """Where weights come from."""

    from_: Folder | None = Field(None, alias="from")
    """Run folder whose best weights (averaged ones where there are any) start this run; null: random."""


class Fsdp(Settings):
    """Fully sharded data parallelism (Zhao et al. 2023, arXiv 2304.11277; torch's `fully_shard`)."""

    offload: bool = runtime(False)
    """GPUs only: weights, gradients and optimiser states live in the host's memory, and visit the GPU block by block."""


class Deepspeed(Settings):
    """ZeRO (Rajbhandari et al. 2019, arXiv 1910.02054)."""

    stage: Literal[1, 2, 3] = runtime(2)
    """What is shared out over the ranks: 1 optimiser states and fp32 weights, 2 gradients as well, 3 all weights as well."""
    offload: Literal["none", "optimizer", "all"] = runtime("none")
    """What lives in the host's memory: none; optimizer (its states and the fp32 weights); all (weights as well, stage 3 only)."""

    @pydantic.model_validator(mode="after")
    def _weights_are_shared(self) -> Deepspeed:
        if self.offload == "all" and self.stage != 3:
            raise ValueError(
                f"offload=optimizer or none with stage {self.stage}: only stage 3 moves weights to the host"
            )
        return self


class Run(Settings):
    """One run: what is trained, on what, and how."""

    seed: Seed = 0
    """Seed of weights, order, augmentation and noise, 0 .. 2**63 - 1."""
    epochs: Count = runtime(80)
    """Passes over the training split at which training ends."""
    until: Count | None = runtime(None)
    """Epoch at whose end training pauses (exit code 75), to go on with a later one or without; null: it goes on to `epochs`."""
    data: Data = Data()
    """Pairs of pictures and maps."""
    augment: Augment = Augment()
    """Changes of training pairs."""
    batch: Batch = Batch()
    """Pictures a step."""
    ema: Ema = Ema()
    """Averaged weights."""
    validate_: Validate = Field(Validate(), alias="validate")
    """Measuring while training."""
    select: Select = Select()
    """Best checkpoint and early stopping."""
    checkpoint: Checkpoint = Checkpoint()
    """What is kept."""
    log: Log = Log()
    """What is reported."""
    on_divergence: Literal["stop", "rollback"] = runtime("stop")
    """A training that goes wrong: stop with a message, or go back to the checkpoint before and on at lower learning rates."""
    divergence: Divergence = Divergence()
    """What counts as going wrong."""
    eval: Eval = Eval()
    """Scoring at the end."""
    study: Study = Study()
    """Looking for the right number of steps."""
    init: Init = Init()
    """Where weights come from."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = runtime("auto")
    """auto (a GPU where there is one), cpu, cuda, cuda:N or mps."""
    strategy: Literal["ddp", "fsdp", "deepspeed"] = runtime("ddp")
    """How several ranks share the work: ddp (each holds all weights), fsdp (torch's fully_shard: each holds a share), deepspeed
    (ZeRO)."""
    fsdp: Fsdp = Fsdp()
    """strategy=fsdp only."""
    deepspeed: Deepspeed = Deepspeed()
    """strategy=deepspeed only."""
    sync_batch_norm: bool = runtime(False)
    """GPUs only: batch normalisation over the micro-batches of all ranks, rather than over each rank's own."""
    activation_checkpointing: bool = runtime(False)
    """Keep of each block of a network its input alone and compute the rest again in backward: less memory, a third slower."""
    hang_minutes: Positive = runtime(10.0)
    """Minutes without progress of some rank after which a run of several ranks is ended, and that rank named."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the networks (tf32: fp32 whose products are rounded to 10 bits, on NVIDIA GPUs since Ampere); weights, losses
    and averages stay fp32."""
    compile: bool = runtime(False)
    """Compile the networks with torch.compile; what cannot be compiled runs eagerly and says so."""
    channels_last: Literal["auto", "always", "never"] = runtime("auto")
    """Memory layout of the networks; auto: where it was measured to pay (a GPU, or compiled)."""
    deterministic: bool = runtime(False)
    """On CUDA: only algorithms that give the same bits each time (slower). A CPU always does."""
    workers: Count | None = runtime(None)
    """Processes that decode pictures into the cache; default: the machine's cores."""
