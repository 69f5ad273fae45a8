"""`fewstep sample`: write texts with a denoiser or an autoregressive model, and watch them appear."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewstep.evaluation.processes import Share, launched_device, launched_share
from fewstep.sampling.samplers import SamplerName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.text import Text

    from fewstep.sampling.text_model import Generation, Snapshot, TextModel

BLANK_WIDTH = 4
"""Characters that a masked position takes while watched: about as many as the token it becomes."""
SHORTEST_SHOW = 2.0
"""Seconds over which the steps of a fast generation are spread, so that an eye can follow."""


def sample(
    *,
    model: str = "sotu-student",
    num_samples: int = 1,
    prompt: str = "",
    suffix: str = "",
    infill: str = "",
    length: int | None = None,
    num_steps: int | None = None,
    sampler: SamplerName | None = None,
    cache_refresh: int = 1,
    block_length: int | None = None,
    chat: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    int8: bool = False,
    compile: Literal["none", "default", "reduce-overhead"] = "none",
    watch: bool = False,
    output: str | None = None,
) -> None:
    """Write texts with a denoiser or an autoregressive model.

    Several processes, as `accelerate launch` and `torchrun` start them, share the texts.

    Args:
        model: A shipped model, a checkpoint directory, or a repository on the Hugging Face hub.
        num_samples: Texts to write.
        prompt: Beginning of the texts.
        suffix: End of the texts. Denoisers only.
        infill: A text with gaps such as `<mask:8>`, which stands for 8 tokens. Denoisers only.
        length: Tokens of a text, prompt and suffix included; by default the model's context.
        num_steps: Steps of a denoiser, each at most one forward pass; by default what a distilled
            student is meant for, and 64 for any other.
        sampler: How a denoiser unmasks; by default ancestral.
        cache_refresh: Steps of a denoiser from one full pass to the next. 1 is exact; more is cheaper
            and approximate, since passes between compute only what just changed; 0 makes one full pass.
        block_length: Tokens written at once beyond the context, for texts longer than it. Denoisers only.
        chat: Write the prompt as a user's message, by the tokenizer's chat template; the text ends where
            the answer does, at the first separator.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Draw among this many most probable tokens; 0 for all.
        top_p: Draw among the fewest most probable tokens that hold this probability.
        seed: Text number i depends on the seed and on i alone.
        batch_size: Texts written at once.
        device: "cpu", "cuda" and so on; "auto" is CUDA where there is one.
        precision: Of weights and matrix products; "auto" is bfloat16 on CUDA and float32 elsewhere.
        int8: Keep the weights of the blocks in 8 bits. Needs torchao.
        compile: Mode of torch.compile: a slow first pass, then faster ones.
        watch: Show the texts in the terminal while they are written.
        output: JSONL file for the texts and their settings.

    Raises:
        ValueError: if a setting is out of range, or has no meaning for this kind of model.
    """
    settings = dict(locals())
    for name in ("model", "num_samples", "watch", "output", "batch_size"):
        del settings[name]
    inference = {name: settings.pop(name) for name in ("device", "precision", "int8", "compile")}
    if output is not None and not Path(output).resolve().parent.is_dir():
        raise ValueError(f"the directory of output {output!r} does not exist; make it first")
    share = launched_share()
    if share.num_processes > 1:
        if watch:
            raise ValueError(f"watch shows the texts of one process, and there are {share.num_processes}")
        meet({"model": model, "num_samples": num_samples, "output": output, **settings, **inference})
        inference["device"] = launched_device(device)
    from rich.console import Console

    from fewstep.sampling.text_model import load

    text_model = load(model, **inference)
    console = Console()
    if watch and console.is_terminal:
        if num_samples > batch_size:
            raise ValueError(
                f"watch shows one batch, and {num_samples} texts do not fit a batch_size of {batch_size}; "
                "raise it, or ask for fewer texts"
            )
        last = show(text_model, text_model.stream(num_samples, **settings), console)
        texts, num_forwards = last.texts, last.num_forwards
    else:
        mine = range(num_samples)[share.process :: share.num_processes]
        generation = text_model.generate(num_samples, batch_size=batch_size, rows=mine, **settings)
        texts, num_forwards = brought_together(generation, share)
    if share.process > 0:
        return
    for number, text in enumerate(texts, start=1):
        if len(texts) > 1:
            print(f"--- text {number} of {len(texts)} ---")
        print(text)
    if output is not None:
        if text_model.is_denoiser:
            settings["num_steps"] = text_model.default_steps if num_steps is None else num_steps
            settings["sampler"] = sampler or "ancestral"
        save(Path(output), texts, {"model": model, **settings, **inference, "num_forwards": num_forwards})


def meet(settings: dict[str, Any]) -> None:
    """Join the other processes, which must have the same settings."""
    from accelerate import PartialState

    from fewstep.training.processes import check_same

    PartialState(cpu=True)
    check_same(settings)


def brought_together(generation: Generation, share: Share) -> tuple[list[str], int]:
    """Return the texts of all processes in order, and the forward passes of the slowest batch."""
    if share.num_processes == 1:
        return generation.texts, generation.num_forwards
    from accelerate.utils import gather_object

    parts: list[Generation] = gather_object([generation])
    texts = [""] * sum(len(part.texts) for part in parts)
    for process, part in enumerate(parts):
        texts[process :: share.num_processes] = part.texts
    return texts, max(part.num_forwards for part in parts)


def save(path: Path, texts: list[str], settings: dict[str, Any]) -> None:
    """Write a line of JSON for each text."""
    records = [{"text": text, "index": index, **settings} for index, text in enumerate(texts)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def show(model: TextModel, snapshots: Iterator[Snapshot], console: Console) -> Snapshot:
    """Show a generation live, take the picture away at its end, and return the last snapshot."""
    from rich.live import Live

    snapshot = None
    with Live(console=console, auto_refresh=False, transient=True) as live:
        shown_at = time.monotonic()
        for snapshot in snapshots:
            live.update(picture(model, snapshot), refresh=True)
            pause = SHORTEST_SHOW / snapshot.num_steps - (time.monotonic() - shown_at)
            time.sleep(max(pause, 0))
            shown_at = time.monotonic()
    assert snapshot is not None, "a generation has at least one step"
    return snapshot


def picture(model: TextModel, snapshot: Snapshot) -> Text:
    """Return the texts of a snapshot: masked positions shaded, tokens of this step highlighted."""
    from rich.text import Text

    passes = "pass" if snapshot.num_forwards == 1 else "passes"
    header = f"step {snapshot.step} of {snapshot.num_steps}, {snapshot.num_forwards} forward {passes}"
    lines = [Text(header, style="bold")]
    for ids, written in zip(snapshot.tokens.tolist(), snapshot.written.tolist(), strict=True):
        line = Text()
        for style, run in styled_runs(ids, written, model.tokenizer.mask_token_id):
            blanks = model.blank * BLANK_WIDTH * len(run)
            line.append(blanks if style == MASKED else model.decode(run), style=style)
        lines.append(line)
    return Text("\n\n").join(lines)


MASKED, WRITTEN, STANDING = "dim", "bold green", ""


def styled_runs(ids: list[int], written: list[bool], mask_token_id: Any) -> Iterator[tuple[str, list[int]]]:
    """Yield stretches of tokens that look the same, each with its style."""
    from itertools import groupby

    styles = [
        MASKED if token == mask_token_id else WRITTEN if new else STANDING
        for token, new in zip(ids, written, strict=True)
    ]
    for style, run in groupby(zip(styles, ids, strict=True), key=lambda pair: pair[0]):
        yield style, [token for _, token in run]
