"""The command line: which commands and flags there are, what they call, and what a person reads when they err."""

import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from memdist import __version__, cli, plan
from memdist.cli import arguments
from memdist.errors import CheckpointError, ConfigError
from memdist.predict.report import Report

# A new flag is a decision: it is written here, in the README and in the changelog. Settings are keys, not flags.
COMMANDS = {
    "": {"--install-completion", "--show-completion"},
    "train": {"CONFIG", "KEY=VALUE", "--out", "--dry-run", "--extend", "--gpus", "--max-restarts"},
    "plan": {"CONFIG", "KEY=VALUE", "--gpus", "--gpu", "--gpus-per-node", "--emit"},
    "evaluate": {
        *("RUN", "KEY=VALUE", "--split", "--checkpoint", "--no-ema", "--sampler", "--steps", "--samples"),
        *("--grid", "--study"),
    },
    "predict": {
        *("RUN", "IMAGE_OR_FOLDER", "--out", "--checkpoint", "--no-ema", "--sampler", "--steps", "--samples"),
        *("--each", "--shard", "--verify", "--grid"),
    },
    "import": {"palette|pix2pix|memdist", "CHECKPOINT", "KEY=VALUE", "--out"},
    "export": {"RUN", "--out", "--checkpoint"},
    "compare": {"RUN", "--html"},
    "submit": set(),
    "submit train": {
        *(
            "CONFIG",
            "KEY=VALUE",
            "--out",
            "-m",
            "--multirun",
            "--extend",
            "--cluster",
            "--time",
            "--nodes",
            "--gpus-per-node",
        ),
        *("--ranks-per-node", "--legs", "--after", "--at-most", "--dry-run"),
    },
    "submit predict": {
        *("RUN", "IMAGE_OR_FOLDER", "--out", "--shards", "--checkpoint", "--no-ema", "--sampler", "--steps"),
        *("--samples", "--each", "--cluster", "--time", "--gpus-per-node", "--after", "--at-most", "--dry-run"),
    },
    "submit evaluate": {
        *("RUN", "KEY=VALUE", "--split", "--checkpoint", "--no-ema", "--sampler", "--steps", "--samples", "--grid"),
        *("--study", "--cluster", "--time", "--nodes", "--gpus-per-node", "--ranks-per-node", "--after", "--dry-run"),
    },
    "submit search": {
        *("SPACE", "KEY=VALUE", "--out", "--cluster", "--time", "--nodes", "--gpus-per-node", "--cpus-per-node"),
        *("--budget", "--legs", "--after", "--dry-run"),
    },
    "cluster": set(),
    "cluster init": {"NAME", "--partition", "--shared"},
    "cluster list": set(),
    "cluster keys": set(),
    "cancel": {"RUN"},
    "status": {"DIR", "--watch", "--all"},
    "logs": {"RUN", "--rank", "--job", "--shard", "--follow", "-f"},
    "data": set(),
    "data make": {"--out", "--pairs", "--size", "--seed"},
    "data cache": {"CONFIG", "KEY=VALUE"},
    "data check": {"CONFIG", "KEY=VALUE", "--group-duplicates"},
    "models": set(),
    "models show": {"NAME"},
    "search": set(),
    "search run": {"SPACE", "KEY=VALUE", "--out", "--ray", "--budget", "--dry-run"},
    "search best": {"SEARCH"},
    "search confirm": {"SEARCH", "KEY=VALUE", "--top", "--seeds", "--ray"},
    "doctor": set(),
    "bench": set(),
    "bench loop": {"CONFIG", "KEY=VALUE", "--steps"},
    "bench scale": {"CONFIG", "KEY=VALUE", "--gpus", "--steps"},
    "bench search": {"SPACE", "KEY=VALUE", "--trials"},
    "bench sample": {"RUN", "KEY=VALUE", "--split", "--images"},
}


class Recorder(types.ModuleType):
    """A stand-in for a module: every function of it notes how it was called, and gives `gives`."""

    def __init__(self, gives: Any = None) -> None:
        super().__init__("recorder")
        self.gives = gives
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*positional: Any, **named: Any) -> Any:
            self.calls.append((name, positional, named))
            return self.gives

        return call


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    """Put a recorder in the place of a module, as `from package import module` finds it."""

    def put(path: str, gives: Any = None) -> Recorder:
        recorder = Recorder(gives)
        package, _, name = path.rpartition(".")
        if package not in sys.modules:
            # The package itself is not what is tested here.
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        monkeypatch.setitem(sys.modules, path, recorder)
        monkeypatch.setattr(sys.modules[package], name, recorder, raising=False)
        return recorder

    return put


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Configurations that were asked for; each resolves to "RUN"."""
    asked: list[tuple[str, Any]] = []

    def resolve(config: str, overrides: Any) -> str:
        asked.append((config, overrides or []))
        return "RUN"

    monkeypatch.setattr(arguments, "resolve", resolve)
    return asked


def run(*arguments: str) -> int:
    """Exit code of the command."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code is None or isinstance(end.value.code, int)
    return end.value.code or 0


def test_commands_and_flags_are_these() -> None:
    found: dict[str, set[str]] = {}

    def walk(command: Any, path: tuple[str, ...]) -> None:
        names: set[str] = set()
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                names.add(parameter.metavar)
            else:
                names |= {*parameter.opts, *parameter.secondary_opts}
        found[" ".join(path)] = names - {"--help"}
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*path, name))

    walk(typer.main.get_command(cli.app), ())
    assert found == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: memdist {command}".rstrip())
    for flag in COMMANDS[command]:
        assert flag in out


# What is called


def test_train_resolves_and_starts(
    room: Callable[..., Recorder], resolved: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    room("memdist.train.start")
    loop = room("memdist.train.loop", 0)
    assert run("train", "unet", "seed=3", "optim.generator.lr=1e-4", "--out", "runs/a") == 0
    assert resolved == [("unet", ["seed=3", "optim.generator.lr=1e-4"])]
    assert loop.calls == [("train", ("RUN", Path("runs/a")), {"extend": False, "look": plan.beforehand})]
    assert capsys.readouterr().out == ""


def test_flags_may_stand_anywhere(room: Callable[..., Recorder], resolved: list[tuple[str, Any]]) -> None:
    room("memdist.train.start")
    loop = room("memdist.train.loop", 0)
    assert run("train", "--extend", "unet", "--out", "runs/a", "epochs=9") == 0
    assert resolved == [("unet", ["epochs=9"])]
    assert loop.calls == [("train", ("RUN", Path("runs/a")), {"extend": True, "look": plan.beforehand})]


@pytest.mark.parametrize("code", [0, 75])
def test_the_exit_code_of_training_is_the_commands(
    code: int, room: Callable[..., Recorder], resolved: list[tuple[str, Any]]
) -> None:
    room("memdist.train.start")
    room("memdist.train.loop", code)
    assert run("train", "unet", "--out", "a") == code


@pytest.mark.parametrize(("config", "name"), [("quick/unet", "quick/unet"), ("my settings.yaml", "my settings")])
def test_the_default_folder_is_named_after_the_configuration(
    config: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: Callable[..., Recorder],
    resolved: list[tuple[str, Any]],
) -> None:
    (tmp_path / "my settings.yaml").write_text("model: unet\n")
    monkeypatch.chdir(tmp_path)
    start, loop = room("memdist.train.start", "FOLDER"), room("memdist.train.loop", 0)
    assert run("train", config, "seed=3") == 0
    assert start.calls == [("default_folder", (name, ["seed=3"], "RUN"), {})]
    assert loop.calls == [("train", ("RUN", "FOLDER"), {"extend": False, "look": plan.beforehand})]


def test_a_dry_run_only_describes(
    room: Callable[..., Recorder],
    resolved: list[tuple[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    describe, loop = room("memdist.train.describe", "what would be trained"), room("memdist.train.loop")
    assert run("train", "unet", "--dry-run", "--out", "a") == 0
    assert describe.calls == [("describe", ("RUN", Path("a")), {})] and loop.calls == []
    assert capsys.readouterr().out == "what would be trained\n"
    assert not list(tmp_path.iterdir())


def test_a_plan(
    room: Callable[..., Recorder], resolved: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    estimate, table = room("memdist.plan.estimate", "PLAN"), room("memdist.plan.table", "what it takes")
    assert run("plan", "unet", "batch.size=64", "--gpus", "64", "--gpu", "h100-80g") == 0
    assert resolved == [("unet", ["batch.size=64"])]
    assert estimate.calls == [("plan", ("RUN",), {"world": 64, "gpu": "h100-80g", "box": 8, "timed": True})]
    assert table.calls == [("render", ("PLAN",), {})]
    says, points = capsys.readouterr().out.splitlines()
    assert says == "what it takes" and "`memdist plan search/unet` plans the space of that name" in points


def test_a_plan_for_other_tools(
    room: Callable[..., Recorder], resolved: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    estimate, emit = room("memdist.plan.estimate", "PLAN"), room("memdist.plan.emit", "{}\n")
    assert run("plan", "unet", "--emit", "deepspeed", "--gpus-per-node", "4") == 0
    assert estimate.calls == [("plan", ("RUN",), {"world": 1, "gpu": "here", "box": 4, "timed": False})]
    assert emit.calls[-1] == ("emit", ("PLAN", "deepspeed"), {}) and capsys.readouterr().out == "{}\n"


@pytest.mark.parametrize(
    ("arguments", "splits", "named"),
    [
        ([], ["test"], {}),
        (["--split", "all"], ["train", "val", "test"], {}),
        (["--split", "val", "--checkpoint", "last", "--no-ema"], ["val"], {"choice": "last", "ema": False}),
        (["--checkpoint", "1200"], ["test"], {"choice": "1200"}),
        (["device=cpu", "eval.steps=9"], ["test"], {"overrides": ["device=cpu", "eval.steps=9"]}),
        (
            ["eval.steps=9", "--sampler", "heun", "--steps", "7", "--samples", "3", "--grid"],
            ["test"],
            {
                "overrides": ["eval.steps=9", "eval.sampler=heun", "eval.steps=7", "eval.samples=3"],
                "grid": True,
            },
        ),
    ],
)
def test_evaluate(
    arguments: list[str], splits: list[str], named: dict[str, Any], room: Callable[..., Recorder]
) -> None:
    evaluate = room("memdist.train.evaluate", "scores")
    assert run("evaluate", "runs/a", *arguments) == 0
    expected = {"choice": "best", "ema": True, "overrides": [], "grid": False, **named}
    assert evaluate.calls == [("evaluate", (Path("runs/a"), splits), expected)]


def test_a_study_is_asked_for_alone(room: Callable[..., Recorder], capsys: pytest.CaptureFixture[str]) -> None:
    study = room("memdist.train.study", "table")
    assert run("evaluate", "runs/a", "--study", "study.steps=[2]", "--checkpoint", "last") == 0
    expected = {"choice": "last", "ema": True, "overrides": ["study.steps=[2]"]}
    assert study.calls == [("study", (Path("runs/a"),), expected)]
    for more in (["--split", "test"], ["--steps", "3"], ["--sampler", "ddim"], ["--samples", "2"], ["--grid"]):
        assert run("evaluate", "runs/a", "--study", *more) == 2
        assert "--study looks at val alone" in capsys.readouterr().err
    assert len(study.calls) == 1


def test_predict(
    room: Callable[..., Recorder], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a=b").write_text("")
    monkeypatch.chdir(tmp_path)
    pictures = room("memdist.predict.pictures", Report("3 maps in maps"))
    inputs = ("x.png", "device=cpu", "folder", "a=b", "./c=d", "eval.steps=9")
    assert run("predict", "runs/a", *inputs, "--out", "maps", "--checkpoint", "last") == 0
    expected = (Path("runs/a"), [Path("x.png"), Path("folder"), Path("a=b"), Path("c=d")], Path("maps"))
    named = {"choice": "last", "ema": True, "overrides": ["device=cpu", "eval.steps=9"]}
    named |= {"each": False, "shard": None, "verify": False, "grid": False}
    assert pictures.calls == [("predict", expected, named)]
    assert capsys.readouterr().out == "3 maps in maps\n"


def test_predict_in_shares_and_with_samples(room: Callable[..., Recorder], capsys: pytest.CaptureFixture[str]) -> None:
    pictures = room("memdist.predict.pictures", Report("1 map in maps", {"picture could not be read": ["a.png"]}))
    flags = ["--sampler", "heun", "--steps", "8", "--samples", "4", "--each", "--shard", "3/8", "--grid"]
    assert run("predict", "runs/a", "x.png", "eval.eta=0", "--out", "maps", "--no-ema", *flags) == 1
    given = ["eval.eta=0", "eval.sampler=heun", "eval.steps=8", "eval.samples=4"]
    named = {"choice": "best", "ema": False, "overrides": given}
    named |= {"each": True, "shard": "3/8", "verify": False, "grid": True}
    assert pictures.calls == [("predict", (Path("runs/a"), [Path("x.png")], Path("maps")), named)]
    assert capsys.readouterr().out == "1 map in maps\n1 picture could not be read:\n  a.png\n"


def test_predict_needs_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "runs/a", "device=cpu", "--out", "maps") == 2
    assert capsys.readouterr().err.startswith("memdist: there are only settings (device=cpu) and no pictures")


def test_compare(room: Callable[..., Recorder], capsys: pytest.CaptureFixture[str]) -> None:
    table, page = room("memdist.compare.table", "table"), room("memdist.compare.page")
    assert run("compare", "runs/a", "runs/b") == 0
    assert table.calls == [("collect", ([Path("runs/a"), Path("runs/b")],), {}), ("render", ("table",), {})]
    assert page.calls == []
    assert run("compare", "runs/a", "--html", "c.html") == 0
    assert page.calls == [("write", ("table", Path("c.html")), {})]
    assert capsys.readouterr().out == "table\ntable\npage: c.html\n"


def test_a_page_that_cannot_be_written_is_told_before_the_table(
    room: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from memdist.compare import page

    room("memdist.compare.table", "table")
    monkeypatch.setattr(page, "_page", lambda _: "page")
    assert run("compare", "runs/a", "--html", "") == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("memdist: --html . is no name of a file: ")


def test_a_cache_in_nobodys_home_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MEMDIST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv("MEMDIST_CACHE", raising=False)
        monkeypatch.setenv(name, "~nobody-of-that-name/x")
        assert run("doctor") == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith(
            "memdist: the folder of caches cannot be ~nobody-of-that-name/x: there is no such home;"
        )


def test_words_between_colons_stay_words(room: Callable[..., Recorder], capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    room("memdist.predict.pictures", Report("1 map in :car:[red]"))
    assert run("predict", "runs/a", "b.png", "--out", ":car:[red]") == 0
    assert capsys.readouterr().out == "1 map in :car:[red]\n"
    table = Table("name")
    table.add_row(":car: [red]")
    room("memdist.models", table)
    assert run("models") == 0
    assert ":car: [red]" in capsys.readouterr().out


def test_data_make_has_the_dissertations_numbers(room: Callable[..., Recorder]) -> None:
    example = room("memdist.data.example")
    assert run("data", "make", "--out", "d") == 0
    assert run("data", "make", "--out", "d", "--pairs", "4", "--size", "32", "--seed", "7") == 0
    assert [call[1] for call in example.calls] == [(Path("d"), 1600, 128, 0), (Path("d"), 4, 32, 7)]


def test_data_cache(room: Callable[..., Recorder], resolved: list[tuple[str, Any]]) -> None:
    dataset = room("memdist.train.dataset", "cached")
    assert run("data", "cache", "unet", "data.size=32") == 0
    assert dataset.calls == [("cache", ("RUN",), {})]
    assert resolved == [("unet", ["data.size=32"])]


@pytest.mark.parametrize("clean", [True, False])
def test_data_check(
    clean: bool, room: Callable[..., Recorder], resolved: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    class Report(str):
        pass

    report = Report("what was found [red]")
    report.clean = clean  # type: ignore[attr-defined]
    survey = room("memdist.train.survey", report)
    assert run("data", "check", "unet", "data.size=32", "--group-duplicates", "g.csv") == (0 if clean else 1)
    assert run("data", "check", "unet") == (0 if clean else 1)
    assert survey.calls == [("survey", ("RUN", Path("g.csv")), {}), ("survey", ("RUN", None), {})]
    assert resolved[0] == ("unet", ["data.size=32"])
    assert capsys.readouterr().out == "what was found [red]\n" * 2


def test_models(room: Callable[..., Recorder], capsys: pytest.CaptureFixture[str]) -> None:
    models = room("memdist.models", "model: [unet]  # [1, 2]\n")
    assert run("models") == 0
    assert run("models", "show", "palette") == 0
    assert [call[:2] for call in models.calls] == [("listing", ()), ("show", ("palette",))]
    # What looks like markup is left alone: `models show NAME > my.yaml` has to be a configuration.
    assert capsys.readouterr().out.endswith("model: [unet]  # [1, 2]\n")


@pytest.mark.parametrize("well", [True, False])
def test_doctor_says_whether_something_has_to_be_mended(well: bool, room: Callable[..., Recorder]) -> None:
    room("memdist.doctor", ("report", well))
    assert run("doctor") == (0 if well else 1)


def test_bench_sample(room: Callable[..., Recorder], capsys: pytest.CaptureFixture[str]) -> None:
    sample = room("memdist.bench.sample")
    assert run("bench", "sample", "runs/a") == 0
    assert run("bench", "sample", "runs/a", "device=cpu", "--split", "val", "--images", "9") == 0
    assert [call[2] for call in sample.calls] == [
        {"split": "test", "images": None, "overrides": []},
        {"split": "val", "images": 9, "overrides": ["device=cpu"]},
    ]
    assert run("bench", "sample", "runs/a", "--split", "all") == 2
    assert "--split all cannot be measured" in capsys.readouterr().err


def test_bench_loop(room: Callable[..., Recorder], resolved: list[tuple[str, Any]]) -> None:
    loop = room("memdist.bench.loop")
    assert run("bench", "loop") == 0
    assert run("bench", "loop", "unet", "device=cpu", "--steps", "10") == 0
    assert loop.calls == [("main", ("RUN",), {"steps": 200}), ("main", ("RUN",), {"steps": 10})]
    assert resolved == [("quick/unet", []), ("unet", ["device=cpu"])]


def test_bench_scale(room: Callable[..., Recorder]) -> None:
    scale = room("memdist.bench.scale")
    assert run("bench", "scale") == 0
    assert run("bench", "scale", "unet", "device=cpu", "--gpus", "4", "--steps", "10") == 0
    assert scale.calls == [
        ("main", ("quick/unet", []), {"ranks": None, "steps": 200}),
        ("main", ("unet", ["device=cpu"]), {"ranks": 4, "steps": 10}),
    ]


def test_bench_search(room: Callable[..., Recorder]) -> None:
    search = room("memdist.bench.search")
    assert run("bench", "search") == 0
    assert run("bench", "search", "unet", "device=cpu", "--trials", "3") == 0
    assert search.calls == [("main", ("quick", []), {"trials": 8}), ("main", ("unet", ["device=cpu"]), {"trials": 3})]


# What a person reads


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tarin"],
        ["train"],
        ["train", "unet", "--epochs", "3"],
        ["train", "unet", "--out"],
        ["train", "unet", "--gpus", "0"],
        ["train", "unet", "--gpus", "-1"],
        ["train", "unet", "--gpus", "two"],
        ["train", "unet", "--max-restarts", "-1"],
        ["evaluate"],
        ["evaluate", "a", "--split", "dev"],
        ["predict", "a", "--out", "b"],
        ["predict", "a", "b.png"],
        ["compare"],
        ["data"],
        ["data", "make"],
        ["data", "make", "--out", "d", "--pairs", "many"],
        ["data", "cache"],
        ["data", "check"],
        ["data", "check", "unet", "--group-duplicates"],
        ["models", "list"],
        ["models", "show"],
        ["doctor", "now"],
        ["bench"],
        ["bench", "loop", "--steps", "0"],
        ["bench", "scale", "--gpus", "0"],
    ],
)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    output = capsys.readouterr()
    assert "Usage: memdist" in output.out + output.err or output.err.startswith("Error: ")
    assert "Traceback" not in output.err


@pytest.mark.parametrize("choice", ["newest", "", "-1", "1.5", "²"])
def test_a_checkpoint_that_cannot_be(choice: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["evaluate", "runs/a"], ["predict", "runs/a", "b.png", "--out", "c"]):
        assert run(*command, f"--checkpoint={choice}") == 2
        sentence = f"--checkpoint {choice!r} cannot be: it should be best, last or the number of a step"
        assert capsys.readouterr().err == f"memdist: {sentence}\n"


def test_a_wrong_configuration_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "no-such-thing") == 2
    assert re.fullmatch("memdist: there is no configuration 'no-such-thing': .*\n", capsys.readouterr().err)


def _raise(error: BaseException) -> Callable[..., None]:
    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


def test_several_mistakes_are_several_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arguments, "resolve", _raise(ConfigError("one\ntwo")))
    assert run("train", "unet") == 2
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "memdist: one\nmemdist: two\n")


@pytest.mark.parametrize(("rank", "says"), [("0", "memdist: one\n"), ("1", "memdist (rank 1): one\n")])
def test_one_rank_shows_and_each_says_what_is_wrong(
    rank: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    room: Callable[..., Recorder],
) -> None:
    for key, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(key, value)
    room("memdist.doctor", ("report", True))
    assert run("doctor") == 0
    assert capsys.readouterr().out == ("report\n" if rank == "0" else "")
    monkeypatch.setattr(arguments, "resolve", _raise(CheckpointError("one")))
    assert run("train", "unet") == 2
    assert capsys.readouterr().err == says


def test_an_interruption_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arguments, "resolve", _raise(KeyboardInterrupt()))
    assert run("train", "unet") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_memdist_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "resolve", _raise(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "unet"])


def test_tables_keep_their_width_in_a_file(room: Callable[..., Recorder], capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table(*(f"column number {i}" for i in range(8)))
    room("memdist.models", table)
    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"column number {i}" in lines[1] for i in range(8))


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("memdist")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0
    assert "Usage: memdist" in done.stdout and "train" in done.stdout
    assert done.stderr == ""


def test_the_installed_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert version("memdist") == __version__
