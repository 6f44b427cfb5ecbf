"""Weights from elsewhere become a run folder that evaluates, predicts and fine-tunes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from memdist import config, draws, foreign, models, rundir
from memdist.data import pairs
from memdist.errors import CheckpointError, ConfigError, printable
from memdist.exchange import bundle, palette, pix2pix, read
from memdist.train import checkpoint, provenance, restore, start, whole
from memdist.train.ema import Averages

T = TypeVar("T")

KINDS = ("palette", "pix2pix", "memdist")


@dataclass
class Source:
    """What was read: settings, state dicts and where they come from."""

    files: list[Path]
    derived: dict[str, Any]
    """Settings that the weights tell."""
    assumed: dict[str, Any]
    """Settings that they do not tell."""
    nets: dict[str, dict[str, Tensor]]
    """State dicts by network; one that is absent starts anew."""
    averages: dict[str, dict[str, Tensor]]
    notes: list[str] = field(default_factory=list)
    table: Tensor | None = None
    """Noise levels that the settings given by hand are to stand for."""


def import_(kind: str, source: Path, out: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Write the run folder `out` from a foreign checkpoint or an exported folder; gives sentences on what it became.

    `overrides` are KEY=VALUE settings for what weights do not tell. Raises MemdistError before anything is written for
    whatever cannot be imported.
    """
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is nothing that can be imported: choose one of {', '.join(KINDS)}")
    bundle.refuse_existing(out)
    if kind == "memdist":
        found, run = _exported(source, overrides)
    else:
        found = (_palette if kind == "palette" else _pix2pix)(source, overrides)
        run = _resolve(source, found, overrides)
    nets, averages = _build(run, found)
    given = {name: value for name, value in config.flat(run).items() if name in _named(overrides)}
    assumed = {name: value for name, value in found.assumed.items() if name not in given}
    record = {
        "kind": kind,
        "files": [{"path": str(path), "sha256": pairs.content_hash(path)} for path in found.files],
        "derived": found.derived,
        "assumed": assumed,
        "given": given,
        "notes": found.notes,
    }
    _write(out, run, nets, averages, record)
    size = sum(p.numel() for net in nets.values() for p in net.parameters())
    lines = [f"{run.model.name} with {size:,} weights in {out}"]
    if assumed:
        told = " ".join(f"{name}={_shown(value)}" for name, value in assumed.items())
        lines.append(f"assumed, as weights do not tell it (give KEY=VALUE for what was otherwise): {told}")
    return lines + found.notes


def _palette(path: Path, overrides: Sequence[str]) -> Source:
    """X_Network.pth, and X_Network_ema.pth beside it."""
    if foreign.standing(path) == "folder":
        raise CheckpointError(f"{path} is a folder: give the file that ends in _Network.pth")
    weights, tables = _of(path, lambda: palette.clean(foreign.tensors(path)))
    size = _size(overrides, palette.default_size(weights))
    found = _of(path, lambda: palette.convert(weights, size))
    assumed = found.assumed | {"optim.denoiser.lr": 5e-5}
    source = Source([path], dict(found.derived), assumed, {"denoiser": found.weights}, {})
    if "gammas" not in tables:
        names = {"name": "linear_beta", "steps": 2000, "start": 1e-6, "end": 1e-2}
        source.assumed |= {f"model.schedule.{name}": value for name, value in names.items()}
    else:
        try:
            source.derived |= _of(path, lambda: palette.noise_schedule(tables))
        except CheckpointError:
            if not {"model.schedule.name", "model.schedule.steps"} <= _named(overrides):
                raise
            source.table = tables["gammas"]
    beside = path.with_name(f"{path.stem}_ema{path.suffix}")
    if beside.is_file():
        average, _ = _of(beside, lambda: palette.clean(foreign.tensors(beside)))
        second = _of(beside, lambda: palette.convert(average, size))
        if second.derived != found.derived:
            raise CheckpointError(f"{beside} is of another network than {path}: keep the two of one training together")
        source.files.append(beside)
        source.averages["denoiser"] = second.weights
        source.assumed["ema.decay"] = palette.EMA_DECAY
    if source.derived["model.net"] == "guided":
        source.notes.append("queries, keys and values are taken as lying head by head (use_new_attention_order=false)")
    return source


def _pix2pix(path: Path, overrides: Sequence[str]) -> Source:
    """A folder with latest_net_G.pth, or X_net_G.pth; the discriminator beside it where there is one."""
    if foreign.standing(path) == "folder":
        folder, path = path, path / "latest_net_G.pth"
        if not path.is_file():
            raise CheckpointError(f"{folder} has no latest_net_G.pth: give the generator's file")
    generator, discriminator = _of(path, lambda: pix2pix.split(foreign.tensors(path)))
    found = _of(path, lambda: pix2pix.convert_generator(generator))
    assumed = {"data.size": pix2pix.default_size(generator), **found.assumed, **pix2pix.ASSUMED}
    for net in ("generator", "discriminator"):
        assumed |= {f"optim.{net}.lr": 2e-4, f"optim.{net}.betas": [0.5, 0.999]}
    source = Source([path], dict(found.derived), assumed, {"generator": found.weights}, {})
    beside = path.with_name(path.name.replace("_net_G", "_net_D"))
    if not discriminator and beside != path and beside.is_file():
        discriminator = _of(beside, lambda: read.stripped(foreign.tensors(beside), pix2pix.PREFIXES))
        source.files.append(beside)
    if discriminator:
        channels = (found.derived["data.image_channels"], found.derived["data.map_channels"])
        try:
            judge = _of(
                source.files[-1],
                lambda: pix2pix.convert_discriminator(discriminator, *channels),
            )
        except CheckpointError as error:
            raise CheckpointError(f"{error}; or keep it from beside the generator, and a new one starts") from error
        source.derived |= judge.derived
        source.nets["discriminator"] = judge.weights
    else:
        judge_settings = {"channels": 64, "multipliers": [1, 2, 4, 8], "flat_kernel": 4}
        judge_settings |= {name: found.derived[f"model.generator.{name}"] for name in ("norm", "bias")}
        source.assumed |= {f"model.discriminator.{name}": value for name, value in judge_settings.items()}
        source.notes.append(f"there is no discriminator ({beside.name}): fine-tuning starts with a new one")
    if found.derived["model.generator.norm"] == "batch" or source.assumed["model.generator.dropout"]:
        source.notes.append(
            "maps are predicted in evaluation mode, as the public test.py does with --eval: running statistics, no dropout"
        )
    return source


def _exported(folder: Path, overrides: Sequence[str]) -> tuple[Source, Any]:
    """What `memdist export` wrote."""
    raw, predicting, training = bundle.read(folder)
    try:
        run = models.resolve(raw)
    except ConfigError as error:
        raise CheckpointError(f"{folder / rundir.CONFIG} cannot be used: {error}; export the run anew") from error
    kept, portable = config.flat(run), config.flat(bundle.portable(run))
    strange = [name for name, value in kept.items() if value != portable[name]]
    if strange:
        raise CheckpointError(
            f"{folder / rundir.CONFIG} sets {strange[0]} = {kept[strange[0]]!r}, which belongs to a machine, and no export "
            "holds; export the run anew"
        )
    changed = models.resolve(config.override(config.plain(run), overrides))
    wrong = [name for name, value in config.identity(changed).items() if value != config.identity(run)[name]]
    if wrong:
        raise ConfigError(
            f"{wrong[0]} says what {folder} is and cannot be changed when it is imported; runtime settings can"
        )
    files = [folder / name for name in bundle.SEALED if (folder / name).is_file()]
    nets, averages = bundle.sorted_out(run, predicting, training)
    return Source(files, {}, {}, nets, averages), changed


def _resolve(path: Path, source: Source, overrides: Sequence[str]) -> Any:
    """Settings of the run: what weights tell, what was given, and what is assumed; they must not contradict one another."""
    channels = source.derived.get("data.image_channels", 3)
    if channels not in (1, 3):
        raise CheckpointError(
            f"{path} takes pictures of {channels} channels; pictures have 1 (grey) or 3 (colour) here"
        )
    raw: dict[str, Any] = {}
    for name, value in (source.assumed | source.derived).items():
        *groups, last = name.split(".")
        level = raw
        for group in groups:
            level = level.setdefault(group, {})
        level[last] = value
    # `model=NAME` would take the place of all that is known of the model.
    raw = config.override(raw, [re.sub(r"^model=(?!\{)", "model.name=", text) for text in overrides])
    # What is no group of settings is told by `resolve`.
    wrong = [name for name, value in source.derived.items() if _laid(raw, name, value) != value]
    if wrong:
        given, told = _laid(raw, wrong[0], None), source.derived[wrong[0]]
        raise ConfigError(f"{wrong[0]} = {given!r} cannot be: the weights of {path} say {told!r}; leave it out")
    run = models.resolve(raw)
    start.build(run)
    if source.table is not None:
        named = run.model.schedule.table()
        if len(named) != len(source.table):
            raise ConfigError(
                f"model.schedule.steps = {len(named)} cannot be: the noise table of {path} has {len(source.table)} levels"
            )
        apart = float((named - source.table.double()).abs().max())
        source.notes.append(f"the schedule given differs from the noise table of {path} by up to {apart:.2g}")
    if source.averages:
        kept = run.ema.decay is not None
        source.notes.append(
            f"averaged weights are {'those of' if kept else 'left out (ema.decay=null):'} {source.files[-1]}"
        )
        if not kept:
            source.averages.clear()
            source.files.pop()
    return run


def _laid(raw: Mapping[str, Any], dotted: str, otherwise: Any) -> Any:
    """Value of a dotted name in raw settings; None where there is none, `otherwise` where its group is no group."""
    *groups, last = dotted.split(".")
    level: Any = raw
    for group in groups:
        level = level.get(group) if isinstance(level, Mapping) else None
    return level.get(last) if isinstance(level, Mapping) else otherwise


def _build(run: Any, source: Source) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Networks and averages with the weights; what the source lacks starts as a new run of this seed would."""
    model = restore.model_of(run)
    restore.affordable(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.key("init", run.seed) & (2**63 - 1))
        nets = dict(model.stage().nets)
    for name, weights in source.nets.items():
        nets[name].load_state_dict(weights)
    averages = Averages(nets, model.averaged(), run.ema.decay).nets
    for name, weights in source.averages.items():
        averages[name].load_state_dict(weights)
    return nets, averages


def _write(
    out: Path, run: Any, nets: Mapping[str, nn.Module], averages: Mapping[str, nn.Module], record: Mapping[str, Any]
) -> None:
    """The run folder, whole or not at all."""
    # The only weights that there are, and so the best.
    selection = {"value": None, "step": 0, "since": 0}
    state = {**whole.UNTRAINED, "selection": selection}
    told = {
        "seed": run.seed,
        "split_seed": run.data.split_seed,
        "identity": config.fingerprint(config.identity(run), 64),
        "imported": dict(record),
        "legs": [provenance.leg(torch.device("cpu"), 1, {}) | {"from_step": 0}],
    }
    parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    with rundir.new_folder(out, only_ours=True) as folder:
        checkpoint.save(folder, 0, nets, averages, state)
        rundir.write_json(folder / rundir.PROVENANCE, told)
        stands = {"state": "imported", "why": f"from {record['kind']}", "step": 0, "steps": 0, "epoch": 0.0}
        rundir.write_json(folder / rundir.STATE, {**stands, "best": selection, "parameters": parameters})
        rundir.write_text(folder / rundir.CONFIG, config.dump(run))


def _of(path: Path, convert: Callable[[], T]) -> T:
    """Name the file in what is said against its content."""
    try:
        return convert()
    except CheckpointError as error:
        said = printable(error)  # names in a foreign file may hold anything
        raise CheckpointError(said if said.startswith(str(path)) else f"{path} {said}") from error


def _named(overrides: Sequence[str]) -> set[str]:
    return {text.partition("=")[0] for text in overrides}


def _size(overrides: Sequence[str], default: int) -> int:
    """Picture size that will hold: attention is set by side lengths. What is no size is refused with the other settings."""
    data = config.override({}, overrides).get("data")
    size = data.get("size", default) if isinstance(data, dict) else default
    return size if isinstance(size, int) and 1 <= size <= 2**14 else default


def _shown(value: Any) -> str:
    return (
        "null" if value is None else str(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    )
