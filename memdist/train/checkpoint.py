"""Checkpoints: folders of safetensors and JSON, keyed by names, whole or absent.

checkpoints/<step, 10 digits>/
    nets.safetensors      <network>.<parameter or buffer>
    averages.safetensors  the same, for networks that keep an average
    optim.safetensors     <network>/<state>/<parameter>
    state.json            step, lengths of line files, selection, scalers, sums
    manifest.json         size and SHA-256 of each file
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memdist import rundir
from memdist.errors import CheckpointError

NETS = "nets.safetensors"
AVERAGES = "averages.safetensors"
OPTIM = "optim.safetensors"


def folder(run: Path, step: int) -> Path:
    """Folder of a step's checkpoint."""
    return run / rundir.CHECKPOINTS / f"{step:010d}"


def steps(run: Path) -> list[int]:
    """Steps of which there is a whole checkpoint, ascending."""
    found = (run / rundir.CHECKPOINTS).glob("[0-9]" * 10)
    return sorted(int(path.name) for path in found if (path / "manifest.json").is_file())


def save(
    run: Path,
    step: int,
    nets: Mapping[str, nn.Module],
    averages: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint whole or not at all."""
    from safetensors.torch import save_file

    # What stands there without a manifest is no checkpoint, and would be in the way of one.
    rundir.remove_folder(folder(run, step))
    with rundir.new_folder(folder(run, step)) as temporary:
        save_file(_weights(nets), temporary / NETS)
        save_file(_weights(averages), temporary / AVERAGES)
        save_file(_optimiser_state(nets, optimisers), temporary / OPTIM)
        (temporary / "state.json").write_text(json.dumps({"step": step, **state}))
        manifest = {path.name: _seal(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))


def prune(run: Path, keep: set[int]) -> None:
    """Remove checkpoints that are not to be kept; called once the next one is whole."""
    for step in steps(run):
        if step not in keep:
            rundir.remove_folder(folder(run, step))


def read_state(run: Path, step: int) -> dict[str, Any]:
    """State of a checkpoint, once its files are found to be what was written."""
    path = folder(run, step)
    manifest = rundir.read_json(path / "manifest.json")
    for name, seal in manifest.items():
        if not (path / name).is_file() or _seal(path / name) != seal:
            raise CheckpointError(
                f"{path / name} is not what was written (checksum); delete the folder {path} to go on from the one before"
            )
    return rundir.read_json(path / "state.json")


def load_weights(run: Path, step: int, nets: Mapping[str, nn.Module], *, averages: bool) -> None:
    """Copy the weights of the networks (or of their averages) of a checkpoint into `nets`."""
    from safetensors.torch import load_file

    path = folder(run, step) / (AVERAGES if averages else NETS)
    stored = load_file(path)
    for name, net in nets.items():
        own = net.state_dict()
        given = {key[len(name) + 1 :]: value for key, value in stored.items() if key.startswith(name + ".")}
        wrong = [
            key
            for key in own.keys() | given.keys()
            if key not in own or key not in given or own[key].shape != given[key].shape
        ]
        if wrong:
            example = sorted(wrong)[0]
            raise CheckpointError(
                f"{path} is from another network: {name} differs in {len(wrong)} tensors, for example {example}; "
                "use the configuration that it was trained with"
            )
        for key, value in own.items():
            value.copy_(given[key])


def load_optimisers(
    run: Path, step: int, nets: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Restore the state of optimisers whose networks are restored already."""
    from safetensors.torch import load_file

    named = {f"{name}/{key}": (optimisers[name], p) for name in optimisers for key, p in nets[name].named_parameters()}
    for key, value in load_file(folder(run, step) / OPTIM).items():
        net, kind, parameter = key.split("/")
        optimiser, weight = named[f"{net}/{parameter}"]
        # Like the weight in layout, so that fused kernels see what they saw before; step counts stay where they were.
        if value.shape == weight.shape:
            restored = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        else:
            fused = optimiser.param_groups[0].get("fused") or optimiser.param_groups[0].get("capturable")
            restored = value.to(weight.device) if fused else value
        optimiser.state[weight][kind] = restored


def _weights(nets: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.cpu().contiguous()
        for name, net in nets.items()
        for key, value in net.state_dict().items()
    }


def _optimiser_state(
    nets: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, optimiser in optimisers.items():
        for key, parameter in nets[name].named_parameters():
            for kind, value in optimiser.state.get(parameter, {}).items():
                if value is not None:
                    state[f"{name}/{kind}/{key}"] = value.detach().cpu().contiguous()
    return state


def _seal(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
