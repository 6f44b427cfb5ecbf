"""Imports point downwards only, and what is heavy is imported where it is used."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import memdist

ROOT = Path(memdist.__file__).parent

# From the top down; a room imports only itself and rooms on lines below its own.
LINES = [
    ["__main__"],
    ["cli"],
    ["bench", "doctor"],
    ["search", "cluster", "compare"],
    ["plan", "predict", "exchange"],
    ["train"],
    ["distributed", "data", "models"],
    ["saliency"],
    ["nets", "diffusion", "augment", "metrics"],
    ["model", "draws"],
    ["locks", "launch"],
    ["rundir", "triage", "foreign"],
    ["config", "process", "output", "times", "axes"],
    ["errors"],
]
DEPTH = {room: depth for depth, line in enumerate(LINES) for room in line}

INSIDE_FUNCTIONS = {"ray", "submitit", "deepspeed", "plotly", "wandb", "tensorboard", "torch.utils.tensorboard"}
INSIDE_FUNCTIONS |= {"torchmetrics", "sklearn"}
WITHOUT_TORCH = {
    "__main__",
    "cli",
    "doctor",
    "compare",
    "cluster",
    "search",
    "saliency",
    "triage",
    "rundir",
    "config",
    "errors",
    "draws",
    "launch",
    "locks",
    "process",
    "output",
    "times",
    "axes",
}


class Import(NamedTuple):
    """One imported module; `at_once`: it is loaded with the file, rather than inside a function or for types only."""

    module: str
    line: int
    at_once: bool


def _imports(source: str) -> Iterator[Import]:
    def walk(node: ast.AST, at_once: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = "." * child.level + (child.module or "")
                yield from (Import(f"{module}.{alias.name}", child.lineno, at_once) for alias in child.names)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, False)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for inner in child.body:
                    yield from walk(ast.Module([inner], []), False)
                for inner in child.orelse:
                    yield from walk(ast.Module([inner], []), at_once)
            else:
                yield from walk(child, at_once)

    yield from walk(ast.parse(source), True)


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _upward(room: str, source: str) -> list[str]:
    """Imports of `source`, a file of `room`, that do not point downwards."""
    faults = []
    for name, line, _ in _imports(source):
        if name.startswith("."):
            faults.append(f"line {line}: relative import {name}")
        if name.split(".")[0] != "memdist" or name in ("memdist", "memdist.__version__"):
            continue
        other = name.split(".")[1]
        if other not in DEPTH:
            faults.append(f"line {line}: {name} is in no known room")
        elif other != room and DEPTH[other] <= DEPTH[room]:
            faults.append(f"line {line}: {room} must not import {other}")
    return faults


def _heavy(room: str, source: str) -> list[str]:
    """Heavy imports of `source`, a file of `room`, that come with the file."""
    banned = INSIDE_FUNCTIONS | ({"torch"} if room in WITHOUT_TORCH else set())
    return [
        f"line {line}: {name} belongs inside a function"
        for name, line, at_once in _imports(source)
        if at_once and any(name == heavy or name.startswith(heavy + ".") for heavy in banned)
    ]


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards_and_heavy_ones_wait(path: Path) -> None:
    room, source = _room(path), path.read_text()
    assert room in DEPTH, f"{room} has no line in the list of rooms"
    assert not _upward(room, source) + _heavy(room, source)


def test_the_package_itself_imports_nothing() -> None:
    assert not list(_imports((ROOT / "__init__.py").read_text()))


def test_the_command_loads_only_what_parses() -> None:
    standard = set(sys.stdlib_module_names)
    texts = [path.read_text() for path in sorted((ROOT / "cli").iterdir()) if path.suffix == ".py"]
    loaded = {i.module.split(".")[0] for text in texts for i in _imports(text) if i.at_once}
    assert loaded - standard == {"typer", "memdist"}


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("config", "from memdist import train"),
        ("config", "import memdist.train.loop"),
        ("data", "from memdist.models import unet"),
        ("nets", "from memdist.metrics import l1"),
        ("nets", "def f():\n    from memdist import cli"),
        ("rundir", "if TYPE_CHECKING:\n    from memdist.model import Pair"),
        ("train", "from . import loop"),
        ("train", "from memdist.utils import x"),
    ],
)
def test_an_upward_import_is_found(room: str, source: str) -> None:
    assert len(_upward(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("train", "from memdist import __version__\nimport memdist"),
        ("train", "from memdist.train import ema\nfrom memdist import config, draws\nimport memdist.errors"),
        ("bench", "from memdist.train import loop"),
    ],
)
def test_a_downward_import_is_allowed(room: str, source: str) -> None:
    assert not _upward(room, source)


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("search", "import ray", 1),
        ("search", "from ray.tune import Tuner", 1),
        ("search", "try:\n    import ray\nexcept ImportError:\n    pass", 1),
        ("search", "class A:\n    import ray", 1),
        ("search", "import rays", 0),
        ("search", "def f():\n    import ray", 0),
        ("search", "if TYPE_CHECKING:\n    import ray", 0),
        ("search", "if TYPE_CHECKING:\n    pass\nelse:\n    import ray", 1),
        ("train", "import torch", 0),
        ("train", "from torch.utils.tensorboard import SummaryWriter", 1),
        ("compare", "from torch import nn", 1),
    ],
)
def test_a_heavy_import_is_found(room: str, source: str, found: int) -> None:
    assert len(_heavy(room, source)) == found


def _loaded(code: str) -> set[str]:
    """Modules that a new interpreter has after `code`."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_importing_memdist_loads_nothing_else() -> None:
    assert not _loaded("import memdist") & {"torch", "numpy", "pydantic", "yaml", "typer", "rich"}


def test_help_loads_neither_torch_nor_pydantic() -> None:
    code = (
        "from memdist.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0"
    )
    assert not _loaded(code) & {"torch", "numpy", "pydantic", "yaml", "memdist.config", "rich.console", "rich.table"}


@pytest.mark.parametrize(
    "module",
    [
        "config",
        "rundir",
        "locks",
        "draws",
        "compare.table",
        "launch.gpus",
        "cluster.watching",
        "cluster.logs",
        "search.space",
    ],
)
def test_what_reads_run_folders_loads_no_torch(module: str) -> None:
    assert "torch" not in _loaded(f"import memdist.{module}")
