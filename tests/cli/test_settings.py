"""Settings come from the signature, the YAML file and the flags, in that order of strength."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from fewstep.cli.settings import known_keys, nearest, parse
from fewstep.data.corpora import Corpus
from fewstep.training.loop import LoopConfig
from fewstep.training.optimizer import OptimizerConfig
from fewstep.training.run import DataConfig
from fewstep.training.settings import save_settings
from fewstep.training.train import train


@dataclass(frozen=True, kw_only=True)
class Oven:
    """How to bake."""

    degrees: float = 180.0
    """Temperature, in Celsius."""
    fan: bool = False
    """Blow the heat around."""


def bake(
    *,
    output: str,
    kind: Literal["bread", "cake"] = "bread",
    sizes: list[int] = [4, 8],  # noqa: B006
    oven: Oven = Oven(),
    second_oven: Oven | None = None,
    quick: bool = False,
) -> None:
    """Bake something.

    It takes a while.

    Args:
        output: Where it goes.
        kind: What to bake.
        sizes: How large.
        oven: Where to bake.
        second_oven: Where to bake the rest.
        quick: Do not let it rest.
    """


def settings_of(*flags: str) -> dict[str, Any]:
    settings = parse(bake, "fewstep bake", list(flags))
    assert settings is not None
    return settings


def refusal(*flags: str) -> str:
    """Return the message with which `flags` are refused, which is a single line."""
    with pytest.raises(ValueError) as caught:
        parse(bake, "fewstep bake", list(flags))
    return " ".join(str(caught.value).split())


def test_defaults_are_those_of_the_signature() -> None:
    assert settings_of("--output", "x") == {
        "output": "x",
        "kind": "bread",
        "sizes": [4, 8],
        "oven": Oven(),
        "second_oven": None,
        "quick": False,
    }


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "bake.yaml"
    path.write_text("output: from file\nkind: cake\noven: {degrees: 2e2, fan: true}\nsizes: [1]\n")
    expected = {"output": "from file", "kind": "cake", "sizes": [1, 2], "oven": Oven(degrees=90.0, fan=True)}
    flags = ["--oven.degrees", "90", "--sizes", "[1, 2]"]
    for order in ([*flags, "--config", str(path)], [f"--config={path}", *flags]):
        settings = settings_of(*order)
        assert {key: settings[key] for key in expected} == expected


def trip(
    *,
    cities: tuple[str, ...],
    days: tuple[int, ...] | None = None,
    shares: list[float] = [1.0],  # noqa: B006
) -> None:
    """Travel.

    Args:
        cities: Where to.
        days: How long in each.
        shares: Of the cost.
    """


@pytest.mark.parametrize(
    ("flags", "cities", "days", "shares"),
    [
        (["Bern", "São Paulo"], ("Bern", "São Paulo"), None, [1.0]),
        (["Bern", "--days", "8", "16"], ("Bern",), (8, 16), [1.0]),
        (["--days", "8", "--cities", "Bern", "12", "a: b, c"], ("Bern", "12", "a: b, c"), (8,), [1.0]),
        (["--days=[8,16]", "--cities", "[Bern,Rome]"], ("Bern", "Rome"), (8, 16), [1.0]),
        (["Bern", "--shares", "-1", "1e-2"], ("Bern",), None, [-1.0, 0.01]),
    ],
)
def test_a_list_is_the_words_behind_its_flag_and_the_first_list_needs_none(
    flags: list[str], cities: tuple[str, ...], days: tuple[int, ...] | None, shares: list[float]
) -> None:
    assert parse(trip, "fewstep trip", flags) == {"cities": cities, "days": days, "shares": shares}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--days", "8"], "the following arguments are required: cities"),
        (["Bern", "--days", "8", "soon"], "--days: .*expected int, got soon"),
        (["Bern", "--days"], "argument --days: expected one argument"),
    ],
)
def test_a_list_of_wrong_words_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(trip, "fewstep trip", flags)


def test_help_shows_which_words_may_lead(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(trip, "fewstep trip", ["-h"]) is None
    assert capsys.readouterr().out.startswith("usage: fewstep trip [CITIES ...] [--config FILE.yaml]")


def test_an_optional_dataclass_is_made_from_its_keys(tmp_path: Path) -> None:
    assert settings_of("--output", "x", "--second_oven.degrees", "50")["second_oven"] == Oven(degrees=50.0)
    path = tmp_path / "bake.yaml"
    path.write_text("output: x\nsecond_oven: {fan: true}\n")
    assert settings_of("--config", str(path))["second_oven"] == Oven(fan=True)


@pytest.mark.parametrize(
    ("flags", "quick", "fan"),
    [
        (["--quick"], True, False),
        (["--quick", "--oven.fan"], True, True),
        (["--quick", "false", "--oven.fan", "true"], False, True),
        (["--quick=false"], False, False),
    ],
)
def test_a_yes_or_no_flag_stands_alone_or_takes_a_value(flags: list[str], quick: bool, fan: bool) -> None:
    settings = settings_of("--output", "x", *flags)
    assert (settings["quick"], settings["oven"].fan) == (quick, fan)


def test_an_unknown_flag_is_refused_with_the_nearest_one() -> None:
    message = "unknown flag --oven.degres; did you mean --oven.degrees?"
    assert refusal("--output", "x", "--oven.degres", "3") == message
    assert refusal("--output", "x", "--degrees=3") == "unknown flag --degrees; did you mean --oven.degrees?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oven: {degres: 3}", "has an unknown key 'oven.degres'; did you mean 'oven.degrees'?"),
        ("second_oven: {fun: true}", "has an unknown key 'second_oven.fun'; did you mean 'second_oven.fan'?"),
        ("out: x", "has an unknown key 'out'; did you mean 'output'?"),
        ("oven: 3", "gives 'oven' the value 3; give keys, such as 'oven.degrees'"),
        ("oven: {degrees: }", "gives 'oven.degrees' no value; give it one, or leave it out"),
        ("oven: [3", "is no YAML file: expected ',' or ']', but got '<stream end>' in line 1"),
        ("- 3", "holds no keys; write one `key: value` a line"),
        ("", "holds no keys; write one `key: value` a line"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bake.yaml"
    path.write_text(text)
    assert refusal("--output", "x", "--config", str(path)) == f"{path} {message}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the following arguments are required: output"),
        (["--output", "x", "--kind", "pie"], "--kind: expected one of 'bread', 'cake', got pie"),
        (["--output", "x", "--oven.degrees", "hot"], "--oven.degrees: expected float, got hot"),
        (["--output", "x", "stray"], "unrecognized arguments: stray"),
        (["stray", "--output", "x"], "--sizes: expected int, got stray"),
        (["--output"], "argument --output: expected one argument"),
    ],
)
def test_a_wrong_value_is_refused_in_one_readable_line(flags: list[str], message: str) -> None:
    assert refusal(*flags) == f"{message}; see fewstep bake --help"


def test_config_needs_a_file(tmp_path: Path) -> None:
    assert refusal("--config", "--output", "x") == "--config names no file; give it a YAML file"
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        parse(bake, "fewstep bake", ["--config", str(tmp_path / "none.yaml")])


def test_help_is_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(bake, "fewstep bake", ["--help"]) is None
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(
        "usage: fewstep bake [SIZES ...] [--config FILE.yaml] [--key value ...] Bake something. It"
    )
    for text in ("Where it goes.", "Temperature, in Celsius.", "Where to bake the rest.", "--oven.fan"):
        assert text in printed
    assert "Args:" not in printed


def test_the_nearest_key_may_be_in_a_group() -> None:
    keys = dict(known_keys(train))
    assert nearest("batch_size", keys) == "loop.batch_size"
    assert nearest("lop.save_evry", keys) == "loop.save_every"
    assert nearest("optimizer.lerning_rate", keys) == "optimizer.learning_rate"
    assert "data.validation_corpus.source" in keys


def test_saved_settings_give_the_same_settings_again(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {
        "output": str(tmp_path),
        "tokenizer": "somewhere",
        "kind": "autoregressive",
        "init_from": None,
        "shape": "tiny",
        "schedule": "cosine",
        "data": DataConfig(corpus=Corpus(source="été.txt", subset="123"), validation_corpus=Corpus()),
        "optimizer": OptimizerConfig(learning_rate=6e-5, decay="cosine"),
        "loop": LoopConfig(batch_size=3, progress=False),
    }
    groups = ("data", "optimizer", "loop")
    save_settings(tmp_path, {**chosen, **{name: asdict(chosen[name]) for name in groups}})
    assert parse(train, "fewstep train", ["--config", str(tmp_path / "config.yaml")]) == chosen
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
