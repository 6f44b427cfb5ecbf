"""Settings: reading, overriding, checking, telling apart what may change, and writing back."""

import pathlib
import re
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from memdist import config
from memdist.errors import ConfigError


class Toy(config.Settings):
    """A model's settings."""

    name: Literal["toy"] = "toy"
    """Name."""
    channels: tuple[config.Count, ...] = (8, 16)
    """Channels."""
    dropout: config.Fraction = 0.0
    """Probability."""


NETWORKS = ("generator", "discriminator")


def _resolve(*overrides: str, raw: dict[str, Any] | None = None) -> Any:
    return config.resolve(config.override({"model": {"name": "toy"}} if raw is None else raw, overrides), Toy, NETWORKS)


def _sentences(*overrides: str, raw: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        _resolve(*overrides, raw=raw)
    return str(caught.value).splitlines()


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# Reading


def test_yaml_reads_as_people_write_it(tmp_path: Path) -> None:
    text = "a: 1e-4\nb: -2E+3\nc: 1.5e2\nd: .5e1\ne: 1e4x\nf: [1e-3, 2]\ng: {h: null}\n"
    assert config.read(_write(tmp_path, text)) == {
        "a": 1e-4,
        "b": -2e3,
        "c": 150.0,
        "d": 5.0,
        "e": "1e4x",
        "f": [1e-3, 2],
        "g": {"h": None},
    }


def test_a_byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    assert config.read(_write(tmp_path, b"\xef\xbb\xbfseed: 1\n")) == {"seed": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is not a text file"),
        ("seed: 1\n".encode("utf-16"), "is not a text file"),
        (b"seed: \x00\n", "is not valid YAML"),
        (b"", "holds no settings"),
        (b"# nothing but a comment\n", "holds no settings"),
        (b"just words\n", "holds no settings"),
        (b"- a\n- b\n", "holds no settings"),
        (b"{}\n", "holds no settings"),
        (b"a: [1\n", r"is not valid YAML \(line 2, column 1\)"),
        (b"a: 1\n\tb: 2\n", r"is not valid YAML \(line 2, column 1\)"),
        (b"a: &x [*x]\n", r"line 1: \*x stands for another value"),
        (b"a: &x {b: 1}\nc:\n  <<: *x\n", r"line 3: \*x stands for another value"),
        (b"a: 1\n<<: {b: 1}\n", "line 2: << takes settings from another group"),
        (b"a: &x 1\n? *x\n: 2\n", r"line 2: \*x stands for another value"),
        (b"a: 1\nseed: 0x" + b"f" * 4500, r"line 2: 0xf+\.\.\. cannot be a number: it has 4502 characters"),
        (b"seed: " + b"9" * 5000, r"line 1: 9+\.\.\. cannot be a number: it has 5000 characters"),
        (b"seed: 1" + b":59" * 3000, "line 1: 1:59.* cannot be a number: it has 9001 characters"),
        (b"lr: 1" + b":59" * 3000 + b".5", "line 1: 1:59.* cannot be a number: it has 9003 characters"),
        (b"a: !!int ''\n", "line 1: '' cannot be a number"),
        (b"a: !!float x\n", "line 1: 'x' cannot be a number"),
        (b"a: !!bool x\n", "line 1: 'x' cannot be true or false"),
        (b"a: !!timestamp x\n", "line 1: 'x' cannot be a date"),
        (b"a: 2026-99-99\n", "line 1: '2026-99-99' cannot be a date"),
        (b"a: !!map [[b, c]]\n", "line 1: what stands after !!map"),
        (b'data: {images: "\\ud800x"}\n', r"line 1: '\\ud800x' holds half of a character"),
        (b'"\\udfff": 1\n', r"line 1: '\\udfff' holds half of a character"),
        (b"a: " + b"[" * 17 + b"]" * 17, "line 1: more than 16 groups or lists within each other"),
        (b"a: 1\n---\nb: 2\n", "another document"),
        (b"a: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        (b"a: 1\nb: 2\na: 3\n", "the key 'a' stands twice"),
        (b"x:\n  a: 1\n  a: 2\n", "the key 'a' stands twice"),
        (b"x: {a: 1, a: 2}\n", "the key 'a' stands twice"),
        (b"? [a]\n: b\n", "my.yaml"),
        (b"{a: b}: c\n", "my.yaml"),
        pytest.param(b"a: " + b"[" * 3000, "my.yaml", id="deep"),
    ],
)
def test_what_is_no_configuration_is_said_with_its_path(tmp_path: Path, text: bytes, says: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as caught:
        config.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_few_bytes_cannot_become_gigabytes(tmp_path: Path) -> None:
    """Nine levels of nine names for the level before: 500 bytes that stand for 400 million words."""
    levels = [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    text = "\n".join(["model: unet", f"a: &a [{', '.join(['x'] * 9)}]", *levels])
    with pytest.raises(ConfigError, match=r"my.yaml, line 3: \*a stands for another value"):
        config.read(_write(tmp_path, text))
    for value in ("[&x [1], *x]", "{a: &x 1, b: *x}"):
        with pytest.raises(ConfigError, match=r"the value of epochs, line 1: \*x stands for another value"):
            config.override({}, [f"epochs={value}"])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("seed=0x" + "f" * 4500, "the value of seed, line 1: 0xffffffffffffffffff... cannot be a number"),
        ("seed=1" + ":59" * 3000, "the value of seed, line 1: 1:59:59:59:59:59:59:... cannot be a number"),
        ('data.images="\\ud800x"', "the value of data.images, line 1: '\\ud800x' holds half of a character"),
        ("epochs=" + "[" * 300 + "]" * 300, "the value of epochs, line 1: more than 16 groups or lists"),
        ("a." * 300 + "b=1", "is no setting: write key=value"),
        ("seed=[" + "9, " * 5000 + "]", "seed = [9, 9, 9"),
    ],
)
def test_an_override_of_any_size_gets_one_short_sentence(setting: str, says: str) -> None:
    (sentence,) = _sentences(setting)
    assert says in sentence and len(sentence) < 400


def test_every_value_that_is_written_is_written_out() -> None:
    shared = [1, 2]
    text = config.written({"a": shared, "b": shared})
    assert config.parse(text, "it") == {"a": [1, 2], "b": [1, 2]}


def test_a_folder_or_nothing_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.yaml"):
        with pytest.raises(ConfigError, match=re.escape(f"{path} cannot be read: ")):
            config.read(path)


def test_nothing_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(ConfigError):
        config.read(_write(tmp_path, f"a: !!python/object/apply:os.mkdir ['{target}']\n"))
    assert not target.exists()


# Overriding


def test_overrides_lie_over_the_file_in_order(tmp_path: Path) -> None:
    path = _write(tmp_path, "seed: 1\noptim:\n  generator: {lr: 1, clip: 2}\n")
    raw = config.read(path, ["optim.generator.lr=1e-4", "data.images=/a b/c", "seed=2", "seed=3", "model.x.y=[1, 2]"])
    assert raw == {
        "seed": 3,
        "optim": {"generator": {"lr": 1e-4, "clip": 2}},
        "data": {"images": "/a b/c"},
        "model": {"x": {"y": [1, 2]}},
    }


def test_an_override_may_be_empty_or_hold_an_equals_sign() -> None:
    assert config.override({}, ["a=", "b=c=d", "e='f: g #h'"]) == {"a": None, "b": "c=d", "e": "f: g #h"}


def test_an_override_replaces_a_value_by_a_group() -> None:
    assert config.override({"model": "toy"}, ["model.name=toy"]) == {"model": {"name": "toy"}}


@pytest.mark.parametrize("text", ["seed", "=1", "1=2", "a..b=1", ".a=1", "a.=1", "--seed=1", "a b=1", "a-b=1", ""])
def test_what_is_no_override_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no setting: write key=value") as caught:
        config.override({}, [text])
    assert repr(text) in str(caught.value)


def test_an_override_that_is_no_yaml_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^the value of data\.images is not valid YAML"):
        config.override({}, ["data.images=[1"])


# Finding


def test_a_file_goes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "shipped", lambda: {"unet": Path("shipped.yaml"), "quick/unet": Path("quick.yaml")})
    monkeypatch.chdir(tmp_path)
    assert config.find("unet") == Path("shipped.yaml")
    assert config.find("quick/unet") == Path("quick.yaml")
    (tmp_path / "unet").write_text("seed: 1\n")
    assert config.find("unet") == Path("unet")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("unett", "did you mean unet"),
        ("quick/unt", "did you mean quick/unet"),
        ("zzz", "shipped ones are unet, quick/unet"),
        ("", "shipped ones are unet, quick/unet"),
        (".", "shipped ones are unet, quick/unet"),
        pytest.param("z" * 5000, "shipped ones are unet, quick/unet", id="long"),
    ],
)
def test_a_name_that_is_nothing_gets_a_hint(name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "shipped", lambda: {"unet": Path("a"), "quick/unet": Path("b")})
    with pytest.raises(ConfigError, match=f"^there is no configuration .*{hint}"):
        config.find(name)


def test_shipped_names_are_those_of_the_files() -> None:
    for name, path in config.shipped().items():
        assert path.is_file() and path.suffix == ".yaml"
        assert path.as_posix().endswith(f"configs/{name}.yaml")


# Checking


def test_values_are_read_into_their_types() -> None:
    run = _resolve(
        "optim.generator.lr=1e-4", "model.channels=[4]", "data.val=0.25", "data.test=test.txt", "init.from=runs/a"
    )
    assert run.optim.generator.lr == 1e-4
    assert run.optim.discriminator == config.Optim()
    assert run.model == Toy(channels=(4,))
    assert run.data.val == 0.25
    assert run.data.test == Path.cwd() / "test.txt"
    assert run.init.from_ == Path.cwd() / "runs/a"


def test_a_folder_may_not_start_at_nobodys_home() -> None:
    (sentence,) = _sentences("data.images=~nobody-of-that-name/x")
    assert sentence.startswith("data.images = '~nobody-of-that-name/x' cannot be: it should be a path that starts at")


def test_a_folder_may_start_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert _resolve("data.images=~/pictures").data.images == Path("/home/somebody/pictures")


def test_settings_are_frozen() -> None:
    run = _resolve()
    for settings, name in ((run, "seed"), (run.data, "size"), (run.optim.generator, "lr"), (run.model, "dropout")):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(settings, name, 1)


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("optim.generator.lr=fast", "a valid number"),
        ("optim.generator.lr=0", "greater than 0"),
        ("optim.generator.lr=-1", "greater than 0"),
        ("optim.generator.lr=.inf", "a finite number"),
        ("optim.generator.lr=.nan", "a finite number"),
        ("optim.generator.lr=true", ""),
        ("optim.generator.name=lion", "'sgd', 'adam', 'adamw' or 'adadelta'"),
        ("optim.generator.schedule.name=step", "'constant', 'linear' or 'cosine'"),
        ("optim.generator.schedule.warmup=-1", "greater than or equal to 0"),
        ("augment.flip=1.5", "less than or equal to 1"),
        ("augment.flip=often", "a valid number"),
        ("batch.size=0", "greater than or equal to 1"),
        ("batch.size=2.5", "a valid integer"),
        ("epochs=many", "a valid integer"),
        ("epochs=", "a valid integer"),
        ("seed=true", ""),
        ("data=3", ""),
        ("data.map_channels=2", "1 or 3"),
        ("data.val=-0.5", "greater than or equal to 0"),
        ("data.val=2", "less than or equal to 1"),
        ("data.val=true", ""),
        ("data.images=5", ""),
        ("device=tpu", ""),
        ("device=cuda:x", ""),
        ("precision=fp8", "'fp32', 'tf32', 'bf16' or 'fp16'"),
        ("strategy=magic", "'ddp'"),
        ("compile=perhaps", "a valid boolean"),
        ("ema.decay=1", "less than 1"),
        ("model.dropout=2", "less than or equal to 1"),
        ("model.name=unet", "'toy'"),
        ("log.wandb=3", "a valid string"),
    ],
)
def test_a_wrong_value_names_field_value_and_what_is_allowed(setting: str, allowed: str) -> None:
    (sentence,) = _sentences(setting)
    name, _, value = setting.partition("=")
    (given,) = config.override({}, [f"given={value}"]).values()
    assert sentence.startswith(f"{name} = {given!r} cannot be: it should be ")
    assert allowed in sentence
    # pydantic's own way of speaking does not reach a person.
    assert not re.search(r"it should be [A-Z]|<class|Input ", sentence)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("study.steps=[]", r"study\.steps = \[\] cannot be: it should be a list of at least 1"),
        ("study.steps=[0]", r"study\.steps\.0 = 0 cannot be: it should be greater than or equal to 1"),
        (f"study.samples={[1] * 17}", r"study\.samples = .* it should be a list of at most 16"),
    ],
)
def test_a_list_of_another_length_is_told_once(setting: str, says: str) -> None:
    (sentence,) = _sentences(setting)
    assert re.fullmatch(says, sentence)


def test_a_wrong_value_in_a_list_is_found() -> None:
    (sentence,) = _sentences("optim.generator.betas=[0.9, 2]")
    assert "optim.generator.betas" in sentence and "less than 1" in sentence
    (sentence,) = _sentences("model.channels=[1, none]")
    assert "model.channels" in sentence and "'none'" in sentence


@pytest.mark.parametrize("word", ["auto", "always", "never"])
def test_no_choice_is_a_word_that_yaml_takes_for_a_truth_value(word: str) -> None:
    assert _resolve(f"channels_last={word}").channels_last == word


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["momentum=0.9"], "momentum, which belongs to sgd and not to adam"),
        (["name=sgd", "betas=[0.5, 0.9]"], "betas, which belongs to adam and adamw and not to sgd"),
        (["name=adamw", "rho=0.5"], "rho, which belongs to adadelta and not to adamw"),
        (["name=adadelta", "kernel=fused"], "adadelta has no fused kernel"),
    ],
)
def test_an_optimiser_takes_only_its_own_settings(settings: list[str], says: str) -> None:
    (sentence,) = _sentences(*(f"optim.generator.{setting}" for setting in settings))
    assert "optim.generator" in sentence and says in sentence


def test_an_optimiser_takes_defaults_of_others() -> None:
    assert _resolve("optim.generator.name=sgd", "optim.generator.betas=[0.9, 0.999]").optim.generator.name == "sgd"


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        ("epoch=3", "epochs"),
        ("data.imags=x", "data.images"),
        ("optim.generatr.lr=1", "optim.generator"),
        ("optim.lr=1", "optim.generator.lr"),
        ("lr=1", "optim.generator.lr"),
        ("batch_size=8", "batch.size"),
        ("patience=8", "select.patience"),
        ("model.chanels=[3]", "model.channels"),
        ("validate.evry=3", "validate.every"),
        ("init.form=x", "init.from"),
    ],
)
def test_a_wrong_key_names_the_nearest(setting: str, near: str) -> None:
    (sentence,) = _sentences(setting)
    assert sentence.startswith("there is no setting ")
    assert near in re.split(r" or |\?| ", sentence.split("did you mean ")[1])


@pytest.mark.parametrize(
    "key", ["learning-rate", "optim.generator.my-lr", "data.(size)", "model.[x]", "float", "model.int"]
)
def test_a_wrong_key_is_named_whatever_it_is_made_of(key: str) -> None:
    *groups, last = key.split(".")
    raw: dict[str, Any] = {"model": {"name": "toy"}}
    level = raw
    for group in groups:
        level = level.setdefault(group, {})
    level[last] = 3
    (sentence,) = _sentences(raw=raw)
    assert sentence.startswith(f"there is no setting {key!r}; ")


def test_a_key_like_no_other_gets_told_where_to_look() -> None:
    assert _sentences("qqqq=1") == ["there is no setting 'qqqq'; `memdist models show NAME` lists all keys"]


@pytest.mark.parametrize("setting", ["validate_.every=3", "init.from_=x"])
def test_a_key_has_one_name(setting: str) -> None:
    (sentence,) = _sentences(setting)
    assert sentence.startswith("there is no setting ")


def test_all_mistakes_are_told_at_once() -> None:
    wrong = ["optim.generator.lr=fast", "epoch=3", "validate.every=0", "augment.flip=2", "model.channels=[1, a]"]
    sentences = _sentences(*wrong)
    assert len(sentences) == len(wrong)
    for setting in wrong:
        assert any(setting.partition("=")[0] in sentence for sentence in sentences)


def test_a_mistake_in_a_union_is_told_once() -> None:
    assert len(_sentences("data.val=2", "data.test=[1]")) == 2


# Identity and runtime


def _leaves() -> list[tuple[str, Any, bool]]:
    return list(config.fields(type(_resolve())))


def _groups(kind: type[config.Settings]) -> list[type[config.Settings]]:
    inner = [info.annotation for info in kind.model_fields.values()]
    found = [group for group in inner if isinstance(group, type) and issubclass(group, config.Settings)]
    return [kind] + [deep for group in found for deep in _groups(group)]


def test_every_setting_is_explained() -> None:
    for group in _groups(config.Run) + _groups(config.Optim):
        assert group.__doc__ and group.__doc__ != config.Settings.__doc__
        for name, info in group.model_fields.items():
            assert info.description, f"{group.__name__}.{name} has no docstring"


def test_what_may_change_between_the_legs_of_a_run() -> None:
    assert {name for name, _, moves in _leaves() if moves} == {
        "epochs",
        "until",
        "data.images",
        "data.maps",
        "data.side_by_side",
        "data.direction",
        "data.csv",
        "data.groups",
        "data.fixations",
        "on_divergence",
        "divergence.gradient",
        "divergence.warmup",
        "divergence.collapse_steps",
        "divergence.rate",
        "divergence.rollbacks",
        "data.cache",
        "data.resident",
        "batch.micro",
        "select.patience",
        "checkpoint.every",
        "checkpoint.every_minutes",
        "checkpoint.keep_every",
        "log.every",
        "log.tensorboard",
        "log.images",
        "log.wandb",
        "eval.sampler",
        "eval.steps",
        "eval.eta",
        "eval.spacing",
        "eval.bound",
        "eval.samples",
        "eval.combine",
        "eval.batch",
        "eval.compile",
        "eval.precision",
        "eval.grid",
        "study.samplers",
        "study.steps",
        "study.samples",
        "study.images",
        "study.tolerance",
        "eval.fid_weights",
        "device",
        "strategy",
        "fsdp.offload",
        "deepspeed.stage",
        "deepspeed.offload",
        "sync_batch_norm",
        "activation_checkpointing",
        "hang_minutes",
        "compile",
        "channels_last",
        "deterministic",
        "workers",
    }


def test_every_leaf_is_named_once_as_users_write_it() -> None:
    names = [name for name, _, _ in _leaves()]
    assert len(names) == len(set(names))
    assert {"seed", "validate.every", "init.from", "model.channels", "optim.discriminator.schedule.warmup"} <= set(
        names
    )
    assert not any("_." in name or name.endswith("_") for name in names)


def test_a_group_that_moves_moves_whole() -> None:
    class Outer(config.Settings):
        """Outer."""

        inner: config.Schedule = config.runtime(config.Schedule())
        """Inner."""

    assert [(name, moves) for name, _, moves in config.fields(Outer)] == [
        ("inner.name", True),
        ("inner.warmup", True),
        ("inner.start", True),
        ("inner.final", True),
    ]


def test_identity_and_flat_agree_with_the_fields() -> None:
    run = _resolve("seed=7", "epochs=3", "optim.generator.lr=0.5")
    flat = config.flat(run)
    assert list(flat) == [name for name, _, _ in _leaves()]
    assert (flat["seed"], flat["epochs"], flat["optim.generator.lr"], flat["model.channels"]) == (7, 3, 0.5, [8, 16])
    assert config.identity(run) == {name: flat[name] for name, _, moves in _leaves() if not moves}


def test_only_identity_changes_the_fingerprint() -> None:
    def mark(*overrides: str) -> str:
        return config.fingerprint(config.identity(_resolve(*overrides)))

    assert mark() == mark("epochs=5", "device=cpu", "compile=true", "data.images=/x", "batch.micro=2")
    others = [
        mark(),
        mark("seed=1"),
        mark("optim.discriminator.lr=1"),
        mark("model.channels=[8]"),
        mark("data.size=32"),
    ]
    assert len(set(others)) == len(others)
    assert re.fullmatch("[0-9a-f]{8}", mark())


def test_a_fingerprint_is_the_same_everywhere() -> None:
    assert config.fingerprint({"b": [1, 2.5, None], "a": "x"}) == config.fingerprint({"a": "x", "b": [1, 2.5, None]})
    # SHA-256 of {"a": "x", "b": [1, 2.5, null]}, computed apart.
    assert config.fingerprint({"a": "x", "b": [1, 2.5, None]}, 12) == "b649bb117135"


# Writing


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "optim.generator.lr=1e-4",
            "data.val=/lists/val é.txt",
            "init.from=a",
            "model.channels=[1, 2, 3]",
            "log.wandb='on'",
        ],
        ["data.images='/a: b #c'", "select.patience=3", "ema.decay=0.999", "channels_last=always", "log.wandb='1e5'"],
    ],
)
def test_the_resolved_configuration_is_a_configuration(tmp_path: Path, overrides: list[str]) -> None:
    run = _resolve(*overrides)
    again = _resolve(raw=config.read(_write(tmp_path, config.dump(run))))
    assert config.plain(again) == config.plain(run)
    assert config.dump(again) == config.dump(run)
    assert config.identity(again) == config.identity(run)


def test_what_is_written_starts_with_the_model_and_holds_yaml_types_only() -> None:
    run = _resolve("data.images=/x", "init.from=/y")
    whole = config.plain(run)
    assert list(whole)[:2] == ["model", "optim"]
    assert whole["data"]["images"] == "/x" and whole["init"] == {"from": "/y"}
    assert not any(isinstance(value, pathlib.PurePath | tuple) for value in config.flat(run).values())
    assert "!!" not in config.dump(run)


def test_a_time_of_day_is_text() -> None:
    assert config.parse("a: 12:00:00\nb: 1:30\nc: 1-12:00:00\nd: 12", "x") == {
        "a": "12:00:00",
        "b": "1:30",
        "c": "1-12:00:00",
        "d": 12,
    }
