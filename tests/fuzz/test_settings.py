"""Whatever stands in a configuration or on the command line: a resolved run, or a ConfigError of whole sentences."""

from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from memdist import config, models
from memdist.errors import ConfigError, MemdistError
from tests.fuzz.damage import Change, changes, damaged

KEYS = [name for kind in models.REGISTRY for name in config.flat(models.resolve({"model": kind}))]
WORDS = sorted(
    {part for key in KEYS for part in key.split(".")} | set(models.REGISTRY) | {"auto", "cosine", "sgd", "."}
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**400, 0.5, 1e-320, 1e308, float("nan"), float("inf")])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(WORDS)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
trees = st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), values, max_size=6)


def _resolved(raw: Any) -> None:
    """Resolve; what can be resolved is written and read back as the same run."""
    try:
        run = models.resolve(raw)
    except MemdistError as error:
        _is_said_well(error)
        return
    again = models.resolve(config.parse(config.dump(run), "the dump"))
    assert config.flat(again) == config.flat(run)


def _is_said_well(error: MemdistError) -> None:
    lines = str(error).splitlines()
    assert lines and all(line.strip() for line in lines), "an error without words"
    assert not any(line.startswith(" = ") or "setting ''" in line for line in lines), "an error that names nothing"
    assert all(len(line) < 1000 for line in lines), "an error that is no sentence"
    assert "Traceback" not in str(error) and "pydantic.dev" not in str(error)


@given(trees)
def test_any_tree_of_values_resolves_or_is_refused(raw: dict[str, Any]) -> None:
    _resolved(raw)


@given(st.sampled_from(sorted(models.REGISTRY)), st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3))
@example("unet", {"optim.unet.lr": 10**400})
@example("palette", {"model.schedule.name": "sigmoid", "model.schedule.start": -1e308, "model.schedule.end": 1e308})
def test_any_value_of_a_known_key_resolves_or_is_refused(model: str, given_: dict[str, Any]) -> None:
    raw: dict[str, Any] = {"model": {"name": model}}
    for key, value in given_.items():
        level = raw
        *groups, last = key.split(".")
        for group in groups:
            if not isinstance(level.get(group), dict):
                level[group] = {}
            level = level[group]
        level[last] = value
    _resolved(raw)


@given(
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.tuples(st.sampled_from(KEYS), st.text(max_size=20)).map("=".join),
            st.tuples(st.sampled_from(KEYS), values.map(lambda v: yaml.safe_dump(v, default_flow_style=True))).map(
                "=".join
            ),
        ),
        max_size=4,
    )
)
@example(["epochs=" + "[" * 2000])
@example(["seed=" + "9" * 5000])
@example(["data.images=\0"])
@example(["data.images=~nobody-of-that-name/x"])
@example(["seed=0x" + "f" * 4500])
@example(['data.images="\\ud800x"'])
@example(["a." * 2000 + "b=1"])
@example(["epochs=" + "[" * 250 + "]" * 250])
def test_any_words_of_a_command_line_are_settings_or_refused(overrides: list[str]) -> None:
    try:
        raw = config.override({"model": {"name": "unet"}}, overrides)
    except ConfigError as error:
        _is_said_well(error)
        return
    _resolved(raw)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
@example(
    b"model: unet\na: &a [x]\n"
    + b"".join(b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (c, c, *[c - 1] * 8) for c in range(98, 104))
)
@example(b"model: unet\nseed: 0x" + b"f" * 4500)
@example(b"model: unet\nseed: 1" + b":59" * 3000 + b".5")
@example(b'model: unet\ndata: {images: "\\ud800x"}\n')
@example(b"model: unet\nepochs: " + b"[" * 250 + b"]" * 250)
@example(b"model: unet\nepochs: !!int ''\n")
@example(b"model: unet\noptim: {unet: {my-lr: 1}}\n")
@example(b"model: unet\ndata: {images: ~nobody-of-that-name/x}\n")
@example(b"? [a, b]\n: 1\n")
@example(b"a: !!python/object/apply:os.system ['true']\n")
@example(b"a: 2026-99-99\n")
@example(b"<<: *x\n")
@example(b"<<: 1\n")
def test_any_bytes_are_a_configuration_or_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "fuzzed.yaml"
    path.write_bytes(text)
    try:
        raw = config.read(path)
    except ConfigError as error:
        _is_said_well(error)
        return
    assert len(repr(raw)) <= 1000 + 20 * len(text), "what was read is far larger than what was written"
    _resolved(raw)


@given(st.sampled_from(sorted(config.shipped())), changes)
def test_a_damaged_configuration_resolves_or_is_refused(tmp_path: Path, name: str, how: list[Change]) -> None:
    path = tmp_path / "damaged.yaml"
    path.write_bytes(damaged(config.shipped()[name].read_bytes(), how))
    try:
        raw = config.read(path)
    except ConfigError as error:
        _is_said_well(error)
        return
    _resolved(raw)


@given(st.text(max_size=40))
@example("\0")
@example("x" * 5000)
@example("../../etc/passwd")
def test_any_name_of_a_configuration_is_found_or_refused(name: str) -> None:
    try:
        assert config.find(name).is_file()
    except ConfigError as error:
        _is_said_well(error)
