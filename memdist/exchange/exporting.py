"""A run leaves as safetensors, settings and a model card: nothing of the machine it was trained on goes along."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memdist import config, metrics, models, rundir
from memdist.data import split as split_
from memdist.errors import CheckpointError
from memdist.exchange import bundle
from memdist.train import checkpoint, evaluate, restore


def export(folder: Path, out: Path, *, choice: str = "best") -> list[str]:
    """Write the exported folder `out` from a checkpoint of a run folder; gives sentences on it.

    Raises MemdistError before anything is written for a folder that is no run, has no such checkpoint, or is torn.
    """
    from safetensors.torch import load_file

    run = restore.settings(folder)
    step = restore.chosen_step(folder, choice)
    bundle.refuse_existing(out)
    checkpoint.read_state(folder, step)
    here = checkpoint.folder(folder, step)
    nets, averages = load_file(here / checkpoint.NETS), load_file(here / checkpoint.AVERAGES)
    predicting = {name + "." for name in bundle.expected(run)[0]}
    kept = run.ema.decay is not None
    model = averages if kept else {k: v for k, v in nets.items() if k.startswith(tuple(predicting))}
    training = {k: v for k, v in nets.items() if kept or k not in model}
    bundle.sorted_out(run, model, training)
    # What a study has found goes along as the settings of the run.
    portable = bundle.portable(run.model_copy(update={"eval": evaluate.settings_for_reading(folder, []).eval}))
    text = card(folder, portable, step, choice)
    state = rundir.read_json(folder / rundir.STATE)
    metadata = {"format": "pt", "model": run.model.name, "step": str(step), "averaged": str(kept).lower()}
    with rundir.new_folder(out, only_ours=True) as temporary:
        checkpoint.write_tensors(model, temporary / bundle.MODEL, metadata)
        if training:
            checkpoint.write_tensors(training, temporary / bundle.TRAINING, metadata)
        rundir.write_text(temporary / rundir.CONFIG, config.dump(portable))
        rundir.write_text(temporary / bundle.CARD, text)
        rundir.write_json(temporary / bundle.MANIFEST, bundle.seal(temporary))
    size = sum(path.stat().st_size for path in out.iterdir())
    lines = [f"{run.model.name} of step {step} in {out} ({size / 2**20:.1f} MiB)"]
    if state.get("state") not in ("finished", "imported"):
        lines.append(f"its training is not finished: {_stands(state)}")
    return lines


@contextlib.contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """Turn what a file of a run folder says otherwise than memdist writes it into a sentence."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{path} is not as this version of memdist writes it ({what}); restore it or delete it"
        ) from error


def card(folder: Path, run: Any, step: int, choice: str) -> str:
    """The model card, in Markdown; `run` are the settings without paths."""
    kind = models.load(run.model.name)
    state, told = rundir.read_json(folder / rundir.STATE), rundir.read_json(folder / rundir.PROVENANCE)
    scores = rundir.read_json(folder / rundir.SCORES)
    averaged = run.ema.decay is not None
    size, channels = run.data.size, run.data.map_channels
    colour = "colour" if run.data.image_channels == 3 else "grey"
    with _as_written(folder / rundir.STATE):
        stands = _stands(state)
    with _as_written(folder / rundir.PROVENANCE):
        data, versions = _data(folder, told), _versions(told)
    with _as_written(folder / rundir.SCORES):
        scored = _scores(scores, step, averaged)
    lines = [
        f"# {run.model.name}",
        "",
        f"{(kind.__doc__ or '').splitlines()[0]} It maps a {colour} picture to a map of {channels} channel"
        f"{'s' if channels > 1 else ''}, both at {size} x {size} pixels with values in [-1, 1].",
        "",
        f"Weights: step {step} ({choice}){', moving averages' if averaged else ''}. Training: {stands}.",
        "",
        "## Data",
        "",
        *data,
        "",
        "## Scores",
        "",
        *scored,
        "",
        "## Use",
        "",
        "```",
        "memdist import memdist THIS_FOLDER --out runs/imported",
        "memdist predict runs/imported PICTURES --out maps",
        "memdist evaluate runs/imported data.images=DIR data.maps=DIR",
        "memdist train runs/imported/config.yaml init.from=runs/imported data.images=DIR data.maps=DIR --out runs/tuned",
        "```",
        "",
        f"`{bundle.MODEL}` holds what predicts, `{bundle.TRAINING}` (if it is there) what fine-tuning needs besides, "
        f"`{rundir.CONFIG}` all settings, `{bundle.MANIFEST}` the checksums of these.",
        "",
        "## Limits",
        "",
        "It has learned from the data above and nothing else: on other pictures, or maps made in another way, its maps may "
        "mean nothing. Compare it with the trivial predictors on your own data before you rely on it. A figure marked as "
        "selected on was looked at while choosing weights or settings, and is optimistic.",
        "",
        "## Versions",
        "",
        *versions,
        "",
    ]
    # Half of a character, which JSON may hold, has no place in UTF-8.
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def _stands(state: Mapping[str, Any]) -> str:
    name = state.get("state", "unknown")
    if name == "imported":
        return "elsewhere; these weights were imported"
    where = f"step {state['step']} of {state['steps']}" if "steps" in state else "an unknown step"
    return f"{name} at {where}"


def _data(folder: Path, told: Mapping[str, Any]) -> list[str]:
    if "imported" in told:
        lines = ["What it was trained on is not known to memdist: the weights were imported."]
        return lines + [f"- source: SHA-256 {file['sha256']}" for file in told["imported"]["files"]]
    if "split_sha256" not in told:
        raise CheckpointError(f"{folder / rundir.PROVENANCE} does not say what the run was trained on; restore it")
    stems = split_.stems_of(split_.read(folder / rundir.SPLIT))
    counts = ", ".join(f"{name} {len(part)}" for name, part in stems.items())
    return [
        f"Pairs of picture and map: {counts}.",
        "",
        f"Fingerprint of the split (stems, splits and content of all files, SHA-256): `{told['split_sha256']}`",
    ]


def _scores(scores: Mapping[str, Any], step: int, averaged: bool) -> list[str]:
    """One table a split, the model above the trivial predictors; scores of other weights are no scores of these."""
    mine = {n: r for n, r in scores.items() if r["checkpoint"] == step and r["ema"] == averaged}
    if not mine:
        return ["These weights have not been scored: `memdist evaluate`."]
    shown = [m for m in metrics.METRICS.values()]
    lines: list[str] = []
    for name, record in mine.items():
        sampling = record["sampling"]
        how = f", {sampling['sampler']} with {sampling['steps']} steps" if sampling else ""
        mark = " **Selected on: optimistic.**" if record["optimistic"] else ""
        lines += ["", f"{name}: {record['n']} pictures{how}.{mark}", ""]
        lines.append("| predictor | " + " | ".join(f"{m.name} ({m.better} is better)" for m in shown) + " |")
        lines.append("|---|" + "---|" * len(shown))
        for who, means in (("**this model**", record["metrics"]), *record["trivial"].items()):
            cells = [means.get(m.name, {}).get("mean") for m in shown]
            lines.append(f"| {who} | " + " | ".join("undefined" if c is None else f"{c:.4f}" for c in cells) + " |")
        if record["skill"] is not None:
            lines += ["", f"Skill over the best trivial predictor (1 - L1 / its L1): {record['skill']:+.3f}"]
    return lines[1:]


def _versions(told: Mapping[str, Any]) -> list[str]:
    leg = (told.get("legs") or [{}])[-1]
    versions = {name: version for name, version in leg.get("versions", {}).items() if version}
    lines = [f"- {name} {version}" for name, version in {"python": leg.get("python", "?"), **versions}.items()]
    git = leg.get("git")
    if git:
        lines.append(f"- commit {git['commit']}{' with changes' if git['diff'] else ''}")
    return lines
