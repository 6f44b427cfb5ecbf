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
_SECRET_WORD = re.compile(
    "(api|access|private)?(keys?|tokens?|secrets?|pass|passwd|passwords?|passphrase|pwd|auth|credentials?|bearer)", re.I
)
_SECRET = "key|token|secret|passw|passwd|pwd|auth|credential|bearer"
_SHORTEST = 8
"""Characters of a secret of the environment, at least: what is shorter stands in too many other words."""


def leg(device: torch.device, world: int, changed: dict[str, Any]) -> dict[str, Any]:
    """Facts of one start of a run; `changed` are runtime settings that differ from those it began with."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *_words(sys.argv[1:])],
        "folder": _without_secrets(os.getcwd()),
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
        "runtime_changes": _cleared(changed),
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
    """Blank what is a secret of the environment, or looks like one: a command line, or a changed script, may carry it."""
    for secret in _of_environment():
        word = word.replace(secret, "***")
    word = _BARE.sub(r"\1\2***", word)
    # Either half of what stands before the @ may be the token.
    word = re.sub(r"://[^/\s?#]+@", "://***@", word)
    word = re.sub(r"(?i)([?&;][\w-]*sig(?:nature)?=)[^&;\s\"']+", r"\1***", word)
    # name=value, "name": value, environ["name"] = value, getenv("name", "value")
    between = r"(?:[\"']?\]?\s*[=:]|[\"']\s*,(?=\s*[\"']))"
    return re.sub(rf"(?is)((?:{_SECRET})[\w-]*{between}\s*).+", r"\1***", word)


def _of_environment() -> list[str]:
    """Values of environment variables that are named like secrets, the longest first; a key in PEM is secret by lines."""
    named = (value for name, value in os.environ.items() if _names_secret(name) and not os.path.exists(value))
    return sorted({line for value in named for line in value.splitlines() if len(line) >= _SHORTEST}, key=len)[::-1]


def _names_secret(name: str) -> bool:
    """Whether one of the words of a variable's name says that it holds a secret: those of XAUTHORITY and KEYBOARD do not."""
    return any(_SECRET_WORD.fullmatch(word) for word in name.split("_"))


def _cleared(value: Any) -> Any:
    """Values of settings without secrets."""
    if isinstance(value, dict):
        return {key: _cleared(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cleared(inner) for inner in value]
    return _without_secrets(value) if isinstance(value, str) else value


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
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        # What was changed may be in any encoding, and is to be read by a person.
        return done.stdout.decode(errors="backslashreplace")

    commit, diff = ask("rev-parse", "HEAD"), ask("diff", "--no-ext-diff", "HEAD")
    if commit is None:
        return None
    whole = diff is not None and len(diff) <= _LONGEST_DIFF
    if diff is not None:
        # Cut at the end of a line: of half a secret nobody knows what it is.
        kept = diff if whole else diff[:_LONGEST_DIFF].rpartition("\n")[0]
        diff = "\n".join(map(_without_secrets, kept.split("\n")))
    return {"commit": commit.strip(), "diff": diff, "diff_is_whole": whole}
