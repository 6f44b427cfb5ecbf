"""Where a run comes from: versions, code, machine, command, seeds, hashes."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import memdist

_PACKAGES = ("torch", "numpy", "accelerate", "deepspeed", "pillow", "safetensors", "pydantic")
_LONGEST_DIFF = 200_000
_BARE = re.compile(r"\b(?:(hf_|gh[opsur]_|AKIA)[A-Za-z0-9]{16,}|(github_pat_|glpat-|sk-|xox[abp]-)[\w-]{16,})")
"""Tokens that say by how they begin what they are: Hugging Face, GitHub, GitLab, OpenAI, Slack, AWS."""
_SECRET = "key|token|secret|passw|passwd|pwd|auth|credential|bearer"


def leg(device: torch.device, world: int, changed: dict[str, Any]) -> dict[str, Any]:
    """Facts of one start of a run; `changed` are runtime settings that differ from those it began with."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *_words(sys.argv[1:])],
        "folder": os.getcwd(),
        "user": _user(),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {"memdist": memdist.__version__} | {name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "ranks": world,
        "runtime_changes": changed,
        "git": _git(),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _without_secrets(word: str) -> str:
    """Blank what looks like the value of a secret: a command line, or a changed script, may carry one by mistake."""
    word = _BARE.sub(r"\1\2***", word)
    word = re.sub(r"(://[^/\s:@]*:)[^/\s@]+@", r"\1***@", word)
    return re.sub(rf"(?i)((?:{_SECRET})[\w-]*[\"']?\s*[=:]\s*).+", r"\1***", word)


def _words(words: Sequence[str]) -> list[str]:
    """A command line without secrets, of which some stand in the word after their name."""
    named = [False, *(bool(re.fullmatch(rf"(?i)--?[\w-]*(?:{_SECRET})[\w-]*", word)) for word in words)]
    return ["***" if hidden else _without_secrets(word) for word, hidden in zip(words, named, strict=False)]


def _git() -> dict[str, Any] | None:
    """Commit of memdist's checkout, and what was changed since; None for an installed package."""
    root = Path(memdist.__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout

    commit, diff = ask("rev-parse", "HEAD"), ask("diff", "--no-ext-diff", "HEAD")
    if commit is None:
        return None
    diff = None if diff is None else "\n".join(map(_without_secrets, diff.split("\n")))
    whole = diff is not None and len(diff) <= _LONGEST_DIFF
    return {
        "commit": commit.strip(),
        "diff": diff[:_LONGEST_DIFF] if diff is not None else None,
        "diff_is_whole": whole,
    }
