"""The README's tree names every file that there is, and no other."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("memdist/", "configs/", "launch/", "slurm/")


def _tree() -> set[str]:
    """Paths in the README's tree; folders end with a slash."""
    block = (ROOT / "README.md").read_text().split("## What stands where")[1].split("```")[1]
    paths: set[str] = set()
    folders: list[str] = []
    for line in block.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, meaning = line.strip().partition(" ")
        del folders[depth:]
        path = "".join(folders) + name
        paths.add(path)
        if name.endswith("/"):
            folders.append(name)
        else:
            assert meaning, f"{path} has no explanation"
    return paths


def test_the_tree_names_every_file() -> None:
    there = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()}
    names = {
        path.relative_to(ROOT).as_posix() for path in there if path.suffix in ("", ".py", ".sh", ".sbatch", ".yaml")
    }
    expected = {name for name in names if not name.endswith("__init__.py")}
    told = {path for path in _tree() if path.startswith(FOLDERS) and not path.endswith("/")}
    assert told == expected


def test_the_tree_names_nothing_that_is_not_there() -> None:
    for path in _tree():
        assert (ROOT / path).exists(), path
