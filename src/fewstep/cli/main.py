"""`fewstep COMMAND`: finds the function of a command, runs it, and turns its errors into one line.

A command is a typed function. Its flags, its help and its YAML keys come from its signature and
docstrings (`fewstep.cli.settings`). Only the function that is asked for is imported.

Exit codes: 0 done, 2 refused or failed in a way a user can mend, 130 interrupted. Whatever else
goes wrong is a defect and keeps its traceback.
"""

import ast
import difflib
import errno
import logging
import os
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import fewstep

COMMANDS = {
    "train": "fewstep.training.train:train",
    "distill": "fewstep.training.distill:distill",
    "sample": "fewstep.cli.sample:sample",
    "convert": "fewstep.cli.convert:convert",
    "share": "fewstep.models.hub:share",
    "demo": "fewstep.cli.demo:demo",
    "eval": "fewstep.cli.eval:evaluate_models",
    "cloze": "fewstep.evaluation.cloze:cloze",
}
SUBCOMMANDS = {
    "bench sampling": "fewstep.cli.bench:sampling",
    "bench distill": "fewstep.cli.bench:distill",
    "bench latency": "fewstep.cli.bench:latency",
    "bench quality": "fewstep.cli.bench:quality",
}
"""Commands of two words; the first word alone lists them."""
REFUSED = 2
INTERRUPTED = 130
SECONDS_OF_THE_FIRST = 3.0
INTERRUPTION = "interrupted; what was saved remains; the same command continues"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (by default the command line's) name; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail(INTERRUPTION, INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except (ValueError, OSError) as error:
        return _fail(one_line(error), REFUSED)
    return 0


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    if arguments[0] == "--version":
        print(f"fewstep {fewstep.__version__}")
        return
    if arguments[0] in groups() and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        print(overview(arguments[0]))
        return
    name, flags = split_command(arguments)
    silence_third_parties()
    log_to_stderr()
    function = command_function(name)
    from fewstep.cli.settings import parse

    settings = parse(function, f"fewstep {name}", flags)
    if settings is not None:
        function(**settings)


def command_function(name: str) -> Callable[..., Any]:
    """Import and return the function of command `name`."""
    module, function = (COMMANDS | SUBCOMMANDS)[name].split(":")
    return getattr(import_module(module), function)


def groups() -> set[str]:
    """Return the first words of the commands of two words."""
    return {name.split()[0] for name in SUBCOMMANDS}


def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """Return the command that `arguments` begin with, one word or two, and what follows it.

    Raises:
        ValueError: if there is no such command.
    """
    num_words = 2 if arguments[0] in groups() else 1
    name = " ".join(arguments[:num_words])
    commands = [*SUBCOMMANDS] if num_words == 2 else [*COMMANDS, *groups()]
    if name not in commands:
        nearest = difflib.get_close_matches(name, commands, n=1, cutoff=0)[0]
        raise ValueError(f"no command {name!r}; did you mean {nearest!r}? See fewstep --help")
    return name, arguments[num_words:]


def overview(group: str = "") -> str:
    """Return the help of `fewstep` itself, or of a group of commands; reads sources, imports none."""
    every = COMMANDS | SUBCOMMANDS
    commands = {name: place for name, place in every.items() if group in ("", name.split()[0])}
    width = max(map(len, commands))
    lines = [
        textwrap.fill(
            summary(place),
            width=100,
            initial_indent=f"  {name:{width}}  ",
            subsequent_indent=" " * (width + 4),
        )
        for name, place in commands.items()
    ]
    return "\n".join(
        [
            "usage: fewstep COMMAND [--config FILE.yaml] [--key value ...]",
            "",
            "Masked diffusion language models that generate text in a few forward passes.",
            "",
            "commands:",
            *lines,
            "",
            "fewstep COMMAND --help   the keys of a command, each a flag and a key of its YAML file",
            "fewstep --version        the version",
        ]
    )


def summary(place: str) -> str:
    """Return the first paragraph of the docstring of the function at `place`, "module:function"."""
    module, name = place.split(":")
    source = Path(fewstep.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").split("\n\n")[0]
    raise LookupError(f"{module} defines no function {name}")


def one_line(error: ValueError | OSError) -> str:
    """Return the message of `error` as one line; of a failed system call, its reason and its file."""
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += "; make room, then the same command continues"
    elif isinstance(error, OSError):  # the hub client's: the first line says what, the others sell
        message = (str(error).strip().splitlines() or [""])[0]
    else:
        message = " ".join(str(error).split())
    return message or type(error).__name__


def _fail(message: str, code: int) -> int:
    if os.environ.get("RANK", "0") != "0":  # what the first process says too is said once
        if code == INTERRUPTED:
            return code
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_OF_THE_FIRST)  # in which the launcher ends this process if the first has failed
    print(f"fewstep: {message}", file=sys.stderr)
    return code


def silence_third_parties() -> None:
    """Keep the progress bars, log lines and warnings of other packages off the terminal."""
    for variable in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(variable, "1")
    for variable in ("DATASETS_VERBOSITY", "HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    for package in ("accelerate", "httpx", "torch", "torch.utils._pytree", "torchao"):
        logging.getLogger(package).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def log_to_stderr() -> None:
    """Show what the package logs, each message a line on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("fewstep")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
