"""Settings of a command: from its function's signature, `--config file.yaml` and `--key value`.

Keys of nested dataclasses are joined by dots: `--loop.batch_size 4` is `loop: {batch_size: 4}` in
YAML. Flags win over the file, wherever `--config` stands; of several files, the last wins.

A list is written as words, `--steps 8 16`, or as YAML, `--steps [8,16]`. The words before the first
flag are the function's first list: `fewstep eval one two` is `fewstep eval --models one two`.
"""

import dataclasses
import difflib
import inspect
import json
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

CONFIG_FLAG = "--config"
OTHER_FLAGS = ("-h", "--help", CONFIG_FLAG, "--print_config")


def parse(function: Callable[..., Any], program: str, flags: list[str]) -> dict[str, Any] | None:
    """Return the keyword arguments of `function` that `flags` give, or None if they ask for help.

    Raises:
        ValueError: if a key is unknown, missing, or has a value of another type.
        OSError: if a configuration file cannot be read.
    """
    known = dict(known_keys(function))
    paths, others = split_config(joined_lists(flags, known))
    for path in paths:
        check_keys(read_yaml(path), known, path)
    others = completed_flags(others, known)
    parser = parser_of(function, program)
    try:
        configured = [argument for path in paths for argument in (CONFIG_FLAG, path)]
        settings = parser.instantiate(parser.parse_args([*configured, *others]))
    except ArgumentError as error:
        raise ValueError(f"{readable(str(error))}; see {program} --help") from error
    except SystemExit:  # --help and --print_config, once they have printed
        return None
    return {key: value for key, value in vars(settings).items() if key != "config"}


def parser_of(function: Callable[..., Any], program: str) -> ArgumentParser:
    """Return the parser that the signature and the docstrings of `function` describe."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    description = re.split(r"\n(?:Args|Returns|Raises):", inspect.getdoc(function) or "")[0]
    words = first_list(dict(known_keys(function)))
    leading = "" if words is None else f"[{words.upper()} ...] "
    usage = f"{program} {leading}[{CONFIG_FLAG} FILE.yaml] [--key value ...]"
    parser = ArgumentParser(prog=program, usage=usage, description=description, exit_on_error=False)
    parser.add_argument(CONFIG_FLAG, action="config", help="YAML file of keys; flags win over it.")
    parser.add_function_arguments(function, as_group=False, fail_untyped=True)
    return parser


def known_keys(owner: Callable[..., Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a function or a dataclass, and of the dataclasses nested in it, and its type."""
    hints = get_type_hints(owner)
    names = (
        [field.name for field in dataclasses.fields(owner)]
        if dataclasses.is_dataclass(owner)
        else list(inspect.signature(owner).parameters)
    )
    for name in names:
        yield prefix + name, hints[name]
        for kind in (hints[name], *get_args(hints[name])):
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                yield from known_keys(kind, f"{prefix}{name}.")


def joined_lists(flags: list[str], known: Mapping[str, Any]) -> list[str]:
    """Return `flags` with the words of each list as one value, `--steps 8 16` as `--steps=[8, 16]`."""
    groups: list[list[str]] = [[]]
    for word in flags:
        if word.startswith("--") or word == "-h":
            groups.append([])
        groups[-1].append(word)
    leading = first_list(known)
    if groups[0] and leading is not None:
        groups[0] = [f"--{leading}", *groups[0]]
    joined = []
    for group in groups:
        flag, words = group[:1], group[1:]
        kind = element_type(known.get("".join(flag)[len("--") :]))
        if kind is None or not words or words[0].startswith("["):
            joined += group
        else:
            values = words if kind in (int, float) else [json.dumps(word) for word in words]
            joined.append(f"{flag[0]}=[{', '.join(values)}]")
    return joined


def first_list(known: Mapping[str, Any]) -> str | None:
    """Return the first key, not of a nested dataclass, that is a list; None if there is none."""
    return next((key for key in known if "." not in key and element_type(known[key]) is not None), None)


def element_type(kind: Any) -> Any:
    """Return the type of the elements of a list or tuple type, optional or not; None for any other."""
    for one in (kind, *get_args(kind)):
        if get_origin(one) in (list, tuple):
            return get_args(one)[0]
    return None


def split_config(flags: list[str]) -> tuple[list[str], list[str]]:
    """Return the files that `--config` names in `flags`, and the other flags.

    Raises:
        ValueError: if `--config` names none.
    """
    paths, others = [], []
    remaining = iter(flags)
    for flag in remaining:
        if flag.startswith(f"{CONFIG_FLAG}="):
            paths.append(flag.partition("=")[2])
        elif flag == CONFIG_FLAG:
            path = next(remaining, "")
            if not path or path.startswith("--"):
                raise ValueError("--config names no file; give it a YAML file")
            paths.append(path)
        else:
            others.append(flag)
    return paths, others


def read_yaml(path: str) -> Mapping[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        ValueError: if it is no YAML, or not keys and values.
        OSError: if it cannot be read.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path} is no YAML file: {error.problem} in line {line}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path} holds no keys; write one `key: value` a line")
    return settings


def check_keys(settings: Mapping[str, Any], known: Mapping[str, Any], path: str, prefix: str = "") -> None:
    """Raise ValueError if `settings`, read from `path`, have a key that is not `known` or has no value."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if key not in known:
            raise ValueError(f"{path} has an unknown key {key!r}; did you mean {nearest(key, known)!r}?")
        nested = sorted(other for other in known if other.startswith(f"{key}."))
        if value is None and type(None) not in get_args(known[key]):
            raise ValueError(f"{path} gives {key!r} no value; give it one, or leave it out")
        if nested and isinstance(value, Mapping):
            check_keys(value, known, path, f"{key}.")
        elif nested and value is not None:
            raise ValueError(f"{path} gives {key!r} the value {value!r}; give keys, such as {nested[0]!r}")


def completed_flags(flags: list[str], known: Mapping[str, Any]) -> list[str]:
    """Return `flags` with "=true" behind every yes-or-no flag that has no value.

    Raises:
        ValueError: if one of them is not `known`.
    """
    completed = []
    for place, flag in enumerate(flags):
        name = flag.partition("=")[0]
        key = name.removeprefix("--").removesuffix("+").removesuffix(".help")
        if name.startswith("--") and " " not in name and name not in OTHER_FLAGS and key not in known:
            raise ValueError(f"unknown flag {name}; did you mean --{nearest(key, known)}?")
        ends_here = all(after.startswith("--") for after in flags[place + 1 : place + 2])
        is_bare = flag == f"--{key}" and known.get(key) is bool and ends_here
        completed.append(f"{flag}=true" if is_bare else flag)
    return completed


def nearest(key: str, known: Mapping[str, Any]) -> str:
    """Return the key of `known` most like `key`, by the whole and by what follows the last dot."""

    def likeness(other: str) -> float:
        pairs = ((key, other), (key.rpartition(".")[2], other.rpartition(".")[2]))
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return max(sorted(known), key=likeness)


def readable(message: str) -> str:
    """Return jsonargparse's `message` without the notation of Python types."""
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message).replace("typing.", "")
    message = re.sub(r'Parser key "([\w.]+)":', r"--\1:", message)
    message = re.sub(r"Expected a (Literal\[.*?\]|\w+)\. Got value: ", r"expected \1, got ", message)
    message = re.sub(r"Literal\[(.*?)\]", r"one of \1", message)
    return " ".join(message.split()).rstrip(".")
