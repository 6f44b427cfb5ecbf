"""Run folders, made by hand, side by side: what the table and the page say of them, and what they refuse."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from memdist.compare import page, table
from memdist.errors import CheckpointError, ConfigError

TEST = ("train", "val", "test")


def _means(l1: float, cc: float | None = 0.4, undefined: int = 0, n: int = 4) -> dict[str, Any]:
    means = {"l1": l1, "cc": cc, "sim": 0.5, "kl": 1.25, "psnr": 20.0, "ssim": 0.7}
    missing = {"cc": undefined}
    return {
        name: {"mean": mean, "n": n - missing.get(name, 0), "undefined": missing.get(name, 0)}
        for name, mean in means.items()
    }


def _scores(l1: float, **change: Any) -> dict[str, Any]:
    trivial = {"black": _means(0.081, None, 4), "mean": _means(0.105, 0.32), "median": _means(0.08)}
    entry = {
        "checkpoint": 1200,
        "choice": "best",
        "ema": False,
        "n": 4,
        "size": [64, 64],
        "sampling": None,
        "seconds": 0.1,
        "optimistic": False,
        "metrics": _means(l1, 0.4714, undefined=1),
        "skill": 1 - l1 / 0.08,
        "trivial": trivial,
    }
    return entry | change


KID: dict[str, Any] = {
    "kind": "kid",
    "n": 4,
    "layer": "pool3 (2048)",
    "weights_sha256": "0" * 64,
    "subsets": 100,
    "subset": 4,
    "model": {"mean": 0.1, "std": 0.01},
    "trivial": {"black": {"mean": 0.5, "std": 0.02}},
}


def _run(folder: Path, name: str = "unet", splits: tuple[str, ...] = TEST, **change: Any) -> Path:
    """A finished, scored run; `change`: scores (None: unscored), state, config, lines, hash."""
    folder.mkdir(parents=True)
    config = {"model": {"name": name, "channels": [32, 64]}, "optim": {"lr": 0.001}, "seed": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | change.get("config", {})))
    with open(folder / "split.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stem", "split", "image_hash", "map_hash"])
        image = change.get("hash", "a")
        writer.writerows([f"{split}{i}", split, f"{image}{i}", f"b{i}"] for split in splits for i in range(4))
    state = {"state": "finished", "step": 2000, "epoch": 20.0, "parameters": {"net": 1_234_567}, "train_seconds": 125.0}
    (folder / "state.json").write_text(json.dumps(state | change.get("state", {})))
    default = {split: _scores(0.07, optimistic=split == "val" or len(splits) < 3) for split in splits}
    scores = change.get("scores", default)
    if scores is not None:
        (folder / "scores.json").write_text(json.dumps(scores))
    lines = change.get("lines", [{"step": 10 * i, "epoch": float(i), "val/l1": 1 / i} for i in range(1, 11)])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _samples(run: Path, stem: str = "test0") -> None:
    folder = run / "samples" / "test"
    folder.mkdir(parents=True)
    for i in range(1, 10):
        Image.new("RGB", (12, 4), (20 * i, 0, 0)).save(folder / f"best-{i:02}-{stem}.png")
    Image.new("RGB", (12, 4), (0, 9, 0)).save(folder / "worst-01-test1.png")
    with open(run / "scores.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "predictor", "stem", "l1", "cc", "sim", "kl", "psnr", "ssim"])
        writer.writerow(["test", "black", stem, "0.5", "", "", "", "", ""])
        writer.writerow(["test", "model", stem, "0.01234", "", "", "", "", ""])
        writer.writerow(["train", "model", stem, "0.6", "", "", "", "", ""])


def _cells(paths: list[Path], group: int = 0) -> dict[str, dict[str, str]]:
    found = table.collect(paths).groups[group]
    titles = [column.title for column in table.columns(page=True)]
    return {row.label: dict(zip(titles, row.cells, strict=True)) for row in table.rows(found, page=True)}


def _shown(paths: list[Path], width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(table.render(table.collect(paths)))
    return capture.get()


def _notes(paths: list[Path], group: int = 0) -> str:
    return "\n".join(table.footnotes(table.collect(paths).groups[group]))


def test_a_row_says_what_was_scored(tmp_path: Path) -> None:
    cells = _cells([_run(tmp_path / "a")])
    assert cells["a"] == {
        "train L1": "0.0700",
        "val L1": "0.0700*",
        "test L1": "0.0700",
        "test CC": "0.471 (1 undefined)",
        "test SIM": "0.500",
        "test KL": "1.250",
        "skill": "0.125",
        "params": "1.23 M",
        "training": "2m 05s",
        "sampling ms/picture": "25.0",
        "weights": "step 1200 (best)",
    }


def test_the_trivial_predictors_stand_below_once(tmp_path: Path) -> None:
    cells = _cells([_run(tmp_path / "a"), _run(tmp_path / "b", "palette")])
    assert list(cells) == ["a", "b", "black", "mean map", "median map"]
    assert cells["black"]["test L1"] == "0.0810"
    assert cells["black"]["test CC"] == "– (4 undefined)"
    assert cells["median map"]["skill"] == "0.000"
    assert cells["mean map"]["skill"] == f"{1 - 0.105 / 0.08:.3f}" == "-0.312"
    assert cells["mean map"]["params"] == ""
    # Selected on by the models, not by what is fitted on train alone.
    assert cells["black"]["val L1"] == "0.0810"
    assert "best trivial predictor (median map, 0.0800)" in _notes([tmp_path / "a"])


def test_weights_say_checkpoint_average_sampler_and_state(tmp_path: Path) -> None:
    sampling = {"sampler": "ddim", "steps": 20}
    entry = _scores(0.07, choice="700", checkpoint=700, ema=True, sampling=sampling, seconds=48.0)
    state = {"state": "running", "epoch": 3.25}
    cells = _cells([_run(tmp_path / "a", scores={"test": entry, "val": entry, "train": entry}, state=state)])
    assert cells["a"]["weights"] == "step 700 · EMA · ddim, 20 evaluations · running at epoch 3.25"
    assert cells["a"]["sampling ms/picture"] == "12,000"
    failed = _run(tmp_path / "b", state={"state": "failed", "why": "the loss is not finite"})
    assert _cells([failed])["b"]["weights"].endswith("failed at epoch 20: the loss is not finite")


def test_a_missing_figure_is_a_dash_and_a_command(tmp_path: Path) -> None:
    run = _run(tmp_path / "my run", scores={"val": _scores(0.07, optimistic=True)})
    cells, notes = _cells([run])["my run"], _notes([run])
    assert [cells[name] for name in ("train L1", "test L1", "test CC", "skill")] == ["–"] * 4
    assert cells["val L1"] == "0.0700*"
    assert f"– my run: train and test not scored yet; `memdist evaluate '{run}' --split all` gives it." in notes
    assert "selected on: optimistic" in notes
    assert "– " not in _notes([_run(tmp_path / "whole")])


def test_a_run_without_a_test_split_says_so_and_not_that_it_could_be_scored(tmp_path: Path) -> None:
    run = _run(tmp_path / "a", splits=("train", "val"))
    cells, notes = _cells([run])["a"], _notes([run])
    assert (cells["train L1"], cells["val L1"], cells["test L1"]) == ("0.0700*", "0.0700*", "–")
    assert "– a has no test split." in notes
    assert "not scored yet" not in notes


def test_missing_parameters_and_time_name_the_command_of_training(tmp_path: Path) -> None:
    run = _run(tmp_path / "a")
    (run / "state.json").unlink()
    assert (_cells([run])["a"]["params"], _cells([run])["a"]["training"]) == ("–", "–")
    assert f"`memdist train {run}/config.yaml --out {run}`" in _notes([run])


def test_scores_of_fewer_pictures_or_other_weights_are_told(tmp_path: Path) -> None:
    scores = {"train": _scores(0.07, n=3), "val": _scores(0.07), "test": _scores(0.07, checkpoint=900, choice="last")}
    notes = _notes([_run(tmp_path / "a", scores=scores)])
    assert "a: train was scored on 3 of 4 pictures." in notes
    assert "train: step 1200 (best); val: step 1200 (best); test: step 900 (last)" in notes


def test_trivial_predictors_that_disagree_are_told(tmp_path: Path) -> None:
    other = _scores(0.07, trivial={"black": _means(0.09)})
    paths = [_run(tmp_path / "a"), _run(tmp_path / "b", scores={"test": other, "val": other, "train": other})]
    assert "its trivial predictors differ from those shown by up to 0.0090" in _notes(paths)
    assert "a: its own" not in _notes(paths)


@pytest.mark.parametrize(
    "other",
    [{"hash": "c"}, {"scores": {name: _scores(0.07, size=[128, 128]) for name in TEST}}],
    ids=["other pictures", "other size"],
)
def test_runs_that_cannot_be_compared_stand_apart(tmp_path: Path, other: dict[str, Any]) -> None:
    paths = [_run(tmp_path / "a"), _run(tmp_path / "b", **other), _run(tmp_path / "c")]
    comparison = table.collect(paths)
    assert [[run.label for run in group.runs] for group in comparison.groups] == [["a", "c"], ["b"]]
    assert [run.label for run in comparison.runs] == ["a", "c", "b"]
    assert [sum(row.trivial for row in table.rows(group, page=False)) for group in comparison.groups] == [3, 3]
    assert "not comparable" in " ".join(_shown(paths).split())
    assert "not comparable" in page.write(comparison, tmp_path / "page.html").read_text()
    assert "not comparable" not in _shown(paths[:1])


def test_the_order_of_split_csv_does_not_matter(tmp_path: Path) -> None:
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b")
    head, *lines = (b / "split.csv").read_text().splitlines()
    (b / "split.csv").write_text("\n".join([head, *reversed(lines)]) + "\n")
    assert len(table.collect([a, b]).groups) == 1


def test_labels_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    paths = [_run(tmp_path / "x" / "run"), _run(tmp_path / "y" / "run")]
    assert [run.label for run in table.collect(paths).runs] == ["x/run", "y/run"]
    assert [run.label for run in table.collect([paths[0], paths[0]]).runs] == ["run"]


def test_the_terminal_takes_names_as_they_are(tmp_path: Path) -> None:
    shown = _shown([_run(tmp_path / "[red]a[bold]")])
    for text in ("[red]a[bold] (unet)", "0.471 (1", "undefined)", "0.0700*", "scored at 64 x 64", "step 1200 (best)"):
        assert text in shown
    assert "test SIM" not in shown


def test_a_narrow_terminal_breaks_no_figure(tmp_path: Path) -> None:
    shown = _shown([_run(tmp_path / "a-long-name-with-a-hash-8f3e21ab", "palette")], width=80)
    assert max(map(len, shown.splitlines())) <= 80
    words = shown.split()
    for word in ("0.0700*", "0.471", "(1", "undefined)", "0.125", "1.23", "2m", "25.0", "0.1050", "-0.312"):
        assert word in words
    assert "…" not in shown and "params" in shown
    assert "a-long-name" in shown


def test_a_distance_of_distributions_that_is_whole_is_shown(tmp_path: Path) -> None:
    run = _run(tmp_path / "a", scores={"test": _scores(0.07, distribution=KID)})
    assert "0.1000 ± 0.0100" in _shown([run]) and "100 subsets of 4" in _shown([run])


def test_what_is_no_scored_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty is no run folder: it has no config\.yaml; give a folder that"):
        table.collect([tmp_path / "empty"])
    with pytest.raises(CheckpointError, match="is no run folder"):
        table.collect([_run(tmp_path / "good"), tmp_path / "absent"])
    unscored = _run(tmp_path / "unscored", scores=None)
    with pytest.raises(CheckpointError, match=f"has no scores yet; `memdist evaluate {unscored} --split all`"):
        table.collect([unscored])
    with pytest.raises(CheckpointError, match="no run folder was given"):
        table.collect([])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scores.json", '{"test": {"n": 4}}'),
        ("scores.json", "{"),
        ("config.yaml", "model: [unclosed"),
        ("config.yaml", "just a string"),
        ("split.csv", "stem,split\na,train\n"),
        ("config.yaml", "model: &a [*a]\n"),
        ("config.yaml", "model: " + "[" * 5000 + "]" * 5000),
        ("config.yaml", 'model: {name: "\\ud800"}\n'),
        ("scores.json", '{"some": {}}'),
        *[
            ("scores.json", json.dumps({"test": _scores(0.07, **change)}))
            for change in (
                {"size": [1]},
                {"size": 3},
                {"size": "64"},
                {"skill": 10**400},
                {"metrics": {"l1": {"mean": 10**400, "n": 4, "undefined": 0}}},
                {"metrics": {"l1": {"mean": 1e300, "n": 4, "undefined": 0}}},
                {"n": 10**400},
                {"fixations": {"sha256": [1]}},
                {"fixations": ["x"]},
                {"distribution": KID | {"n": "many"}},
                {"distribution": KID | {"subsets": None}},
                {"distribution": {key: value for key, value in KID.items() if key != "n"}},
                {"distribution": {key: value for key, value in KID.items() if key != "subset"}},
                {"distribution": KID | {"weights_sha256": 3}},
                {"distribution": KID | {"layer": []}},
                {"distribution": KID | {"model": {"mean": "x", "std": None}}},
                {"distribution": "kid"},
            )
        ],
        ("state.json", json.dumps({"parameters": {"net": 10**400}})),
        ("state.json", json.dumps({"state": "stopped"})),
        ("state.json", json.dumps({"state": "stopped", "epoch": 10**400})),
    ],
)
def test_a_damaged_run_folder_is_refused_in_a_sentence(tmp_path: Path, name: str, text: str) -> None:
    run = _run(tmp_path / "a")
    (run / name).write_text(text)
    with pytest.raises(CheckpointError, match="restore it") as caught:
        table.collect([run])
    assert len(str(caught.value)) < 1000
    assert name == "scores.json" or "memdist evaluate" in str(caught.value)


class _Tags(HTMLParser):
    """Every tag with its attributes, and a check that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _parsed(text: str) -> _Tags:
    parser = _Tags()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_stands_alone(tmp_path: Path) -> None:
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b", "palette", config={"optim": {"lr": 0.002}})
    _samples(a)
    out = page.write(table.collect([a, b]), tmp_path / "deep" / "compare.html")
    assert out == tmp_path / "deep" / "compare.html"
    assert [path.name for path in out.parent.iterdir()] == ["compare.html"]
    text = out.read_text()
    parser = _parsed(text)
    for tag, attributes in parser.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    # Six of the nine best, the one worst.
    assert sum(tag == "img" for tag, _ in parser.tags) == 7
    assert "Best by L1 on test, 6 of 9" in text and "Worst by L1 on test:" in text
    assert "test0 &middot; L1 0.0123" in text
    assert f"memdist evaluate {b} --split all" in text
    assert sum(tag == "polyline" for tag, _ in parser.tags) == 2


def test_the_page_has_settings_that_differ_definitions_and_footnotes(tmp_path: Path) -> None:
    config = {"model": {"name": "palette", "channels": [32, 64], "steps": 2000}, "optim": {"lr": 0.002}}
    comparison = table.collect([_run(tmp_path / "a"), _run(tmp_path / "b", config=config)])
    text = page.write(comparison, tmp_path / "page.html").read_text()
    settings = text.split("Settings that differ")[1].split("<h2>")[0]
    assert re.findall(r'<th scope="row">(.*?)</th>', settings) == ["model.name", "optim.lr", "model.steps"]
    assert re.findall(r'<td class="text">(.*?)</td>', settings) == ["unet", "palette", "0.001", "0.002", "–", "2000"]
    for words in (
        "KL(truth || prediction)",
        "selected on: optimistic",
        "0.471 <small>(1 undefined)</small>",
        "test SIM",
        "nats",
    ):
        assert words in text
    alone = page.write(table.collect([tmp_path / "a"]), tmp_path / "alone.html").read_text()
    assert "There is one run only." in alone


def test_the_page_escapes_what_it_shows(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    config = {"model": {"name": f"{evil}model"}, "data": {"path": f'"{evil}&'}}
    runs = [_run(tmp_path / "<b>'\"&", config=config), _run(tmp_path / "b")]
    _samples(runs[0], stem="<i>&")
    parser = _parsed(page.write(table.collect(runs), tmp_path / "page.html").read_text())
    assert not {"b", "i"} & {tag for tag, _ in parser.tags}
    assert all((attributes["src"] or "").startswith("data:") for tag, attributes in parser.tags if tag == "img")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 1, "epoch": 0.5, "train/loss": 1.0}],
        [{"step": 1, "epoch": 1.0, "val/l1": 0.1}],
        [{"step": 1, "epoch": 0.0, "val/l1": 0.1}, {"step": 2, "epoch": 1.0, "val/l1": None}],
        [{"step": i, "epoch": float(i), "val/l1": 0.0} for i in range(100)],
    ],
    ids=["nothing", "not validated", "one point", "epoch 0", "perfect"],
)
def test_curves_of_little(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    run = _run(tmp_path / "a", lines=lines)
    # A kill leaves half a line.
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "ep')
    text = page.write(table.collect([run]), tmp_path / "page.html").read_text()
    _parsed(text)
    assert "nan" not in text.split("<body>")[1]
    assert ("No run of this table has validated yet." in text) == (not any("val/l1" in line for line in lines))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{\n{}\n", r"line 1 of .*metrics\.jsonl is no JSON \("),
        ("{}\n[1]\n", r"line 2 of .*metrics\.jsonl is no JSON object"),
        ("[" * 100_000 + "\n", r"line 1 of .*metrics\.jsonl is no JSON \(too deeply nested\)"),
        ('{"epoch": 1, "val/l1": "x"}\n', r"metrics\.jsonl has 'x' where an epoch or a val/l1 should stand"),
        ('{"epoch": "1", "val/l1": 0.1}\n', r"metrics\.jsonl has '1' where"),
        ('{"epoch": Infinity, "val/l1": 0.1}\n', r"metrics\.jsonl has inf where"),
        ('{"epoch": 1, "val/l1": NaN}\n', r"metrics\.jsonl has nan where"),
        ('{"epoch": 1, "val/l1": 1e308}\n', r"metrics\.jsonl has 1e\+308 where"),
        ('{"epoch": -1, "val/l1": 0.1}\n', r"metrics\.jsonl has -1 where"),
        (f'{{"epoch": {10**400}, "val/l1": 0.1}}\n', r"metrics\.jsonl has a value where"),
        ('{"epoch": true, "val/l1": 0.1}\n', r"metrics\.jsonl has True where"),
    ],
    ids=range(11),
)
def test_a_damaged_metrics_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    run = _run(tmp_path / "a")
    (run / "metrics.jsonl").write_text(text)
    with pytest.raises(CheckpointError, match=says):
        page.write(table.collect([run]), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(("epoch", "l1"), [(5e-324, 0.1), (1e12, 1e12), (1, 5e-324), (0, 0)])
def test_curves_of_extreme_values_are_drawn(tmp_path: Path, epoch: float, l1: float) -> None:
    lines = [{"epoch": epoch, "val/l1": l1}, {"epoch": epoch, "val/l1": 0.5}]
    text = page.write(table.collect([_run(tmp_path / "a", lines=lines)]), tmp_path / "page.html").read_text()
    assert "<polyline" in text and "nan" not in text.split("<body>")[1] and "inf" not in text.split("<polyline")[1]


def test_a_page_needs_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table.collect([_run(tmp_path / "a")])
    monkeypatch.chdir(tmp_path)
    for name in ("", ".", "..", "a", "/"):
        with pytest.raises(ConfigError, match="is no name of a file: name one, such as comparison.html"):
            page.write(found, Path(name))


def test_a_page_shows_names_that_are_no_text(tmp_path: Path) -> None:
    run = _run(tmp_path / "a")
    _samples(run)
    os.rename(
        os.fsencode(run) + b"/samples/test/best-01-test0.png", os.fsencode(run) + b"/samples/test/best-01-x\xff.png"
    )
    scores = {"test": _scores(0.07, trivial={"\ud800": _means(0.1)})}
    (run / "scores.json").write_text(json.dumps(scores))
    text = page.write(table.collect([run]), tmp_path / "page.html").read_text()
    assert "x\\udcff" in text and "\\ud800" in text


def test_a_page_holds_nothing_that_a_link_leads_to(tmp_path: Path) -> None:
    run = _run(tmp_path / "a")
    _samples(run)
    (tmp_path / "private").write_bytes(b"private words")
    (run / "samples" / "test" / "best-02-test0.png").unlink()
    (run / "samples" / "test" / "best-02-test0.png").symlink_to(tmp_path / "private")
    (run / "samples" / "test" / "best-10-test0.png").mkdir()
    text = page.write(table.collect([run]), tmp_path / "page.html").read_text()
    assert "data:image/png" in text and base64.b64encode(b"private words").decode() not in text


def test_curves_lie_inside_the_plot_with_the_least_error_lowest(tmp_path: Path) -> None:
    text = page.write(table.collect([_run(tmp_path / "a")]), tmp_path / "page.html").read_text()
    points = re.search(r"<polyline [^>]*points=['\"]([^'\"]*)", text)
    assert points
    places = [tuple(map(float, pair.split(","))) for pair in points[1].split()]
    assert len(places) == 10
    assert all(0 <= x <= 900 and 0 <= y <= 320 for x, y in places)
    assert places == sorted(places)
    assert "logarithmic" in text
    # 1, 1/2, 1/4, 1/8 are equally far apart on a logarithmic axis.
    steps = [places[2 * i - 1][1] - places[i - 1][1] for i in (1, 2, 4)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)


def test_comparing_loads_no_torch() -> None:
    code = "import sys; from memdist.compare import page, table; assert not {'torch', 'ray', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
