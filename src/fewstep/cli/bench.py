"""`fewstep bench NAME`: run a benchmark, print its table, and last a line of JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewstep.models.config import ShapeName

if TYPE_CHECKING:
    from collections.abc import Sequence

Device = Literal["cpu", "cuda"]


def sampling(
    *,
    shape: ShapeName = "small",
    length: int = 1024,
    steps: tuple[int, ...] = (16, 32),
    batch: int = 1,
    cache_refresh: int = 8,
    repeats: int = 3,
    seed: int = 0,
    device: Device = "cpu",
    output: str | None = None,
) -> None:
    """Time our sampler against the plain one, which computes logits and noise at every position.

    Prints a table, and last one line of JSON with `speedup` and `speedup_cached`. Runs from a clone of
    the repository, where the plain sampler is.

    Args:
        shape: Size of the untrained denoiser.
        length: Tokens of a text.
        steps: Numbers of steps, such as [16,32].
        batch: Texts written together.
        cache_refresh: Steps from one full pass to the next of the cached sampler; 0 for only one.
        repeats: Timed generations of each sampler, taken in turn.
        seed: Of the texts.
        device: Where to run; float32 on cpu, bfloat16 on cuda.
        output: JSON file to write as well.
    """
    from fewstep.benchmark.sampling import SamplingSettings, run_sampling

    settings = SamplingSettings(
        shape=shape, length=length, steps=steps, batch=batch, cache_refresh=cache_refresh,
        repeats=repeats, seed=seed, device=device,
    )  # fmt: skip
    file = checked_output(output)
    result = run_sampling(settings, announce)
    sides = ("plain", "uncached", "cached")
    print_table(
        ["steps", *(f"{side} (s)" for side in sides), "speedup", "speedup cached"],
        [
            [
                row["steps"],
                *(with_spread(row["seconds"][side], row["spread"][side]) for side in sides),
                f"{row['speedup']:.2f}",
                f"{row['speedup_cached']:.2f}",
            ]
            for row in result["rows"]
        ],
    )
    share = result["profile"]["share_outside_matrix_products"]
    print(f"outside matrix products: {share:.1%} of an uncached step")
    finish(result, file)


def distill(
    *,
    shape: ShapeName = "small",
    lengths: tuple[int, ...] = (256, 1024),
    tokens: int = 2048,
    teacher_steps: int = 2,
    activation_checkpointing: bool = True,
    repeats: int = 3,
    seed: int = 0,
    device: Device = "cpu",
    output: str | None = None,
) -> None:
    """Time a training step of SDTT, and its peak memory, against the plain one with B x L x V tensors.

    Prints a table, and last one line of JSON with `speedup` and `memory_ratio`. Memory is what one
    training step takes above weights, gradients and optimizer state. Runs from a clone of the
    repository, where the plain training step is.

    Args:
        shape: Size of the untrained teacher and student.
        lengths: Tokens of a text, such as [256,1024].
        tokens: Tokens of a training step, a multiple of each length.
        teacher_steps: Teacher steps folded into one student step.
        activation_checkpointing: Ours computes each block again for its gradients, and keeps less.
        repeats: Timed training steps of each, taken in turn.
        seed: Of the masks and of the teacher's draws.
        device: Where to run; float32 on cpu, bfloat16 autocast on cuda.
        output: JSON file to write as well.
    """
    from fewstep.benchmark.distillation import DistillSettings, run_distill

    settings = DistillSettings(
        shape=shape, lengths=lengths, tokens=tokens, teacher_steps=teacher_steps,
        activation_checkpointing=activation_checkpointing, repeats=repeats,
        seed=seed, device=device,
    )  # fmt: skip
    file = checked_output(output)
    result = run_distill(settings, announce)
    print_table(
        ["length", "plain (s)", "ours (s)", "speedup", "plain (GB)", "ours (GB)", "memory ratio"],
        [
            [
                row["length"],
                *(with_spread(row["seconds"][side], row["spread"][side]) for side in ("plain", "ours")),
                f"{row['speedup']:.2f}",
                *(f"{row['peak_bytes'][side] / 1e9:.2f}" for side in ("plain", "ours")),
                f"{row['memory_ratio']:.3f}",
            ]
            for row in result["rows"]
        ],
    )
    finish(result, file)


def latency(
    *,
    shapes: tuple[ShapeName, ...] = ("small", "medium", "large", "xlarge"),
    batches: tuple[int, ...] = (1, 4, 8),
    steps: tuple[int, ...] = (8, 16, 32, 64),
    cache_refresh: tuple[int, ...] = (1, 8, 0),
    length: int = 1024,
    timed_tokens: int = 4,
    repeats: int = 3,
    max_seconds: float = 60.0,
    check: bool = False,
    seed: int = 0,
    device: Device = "cpu",
    output: str | None = None,
    plot: bool = False,
) -> None:
    """Time an autoregressive model with a KV cache against diffusion in few steps, cached and not.

    Prints a table, and last one line of JSON with `rows` of `model, batch, steps, cache_refresh, seconds,
    tokens_per_second`; autoregressive rows have no steps. Rows also go to a JSONL file beside `output`,
    from which the same command goes on when it was stopped. Weights are untrained.

    Args:
        shapes: Sizes of the models, such as [small,xlarge].
        batches: Texts written together, such as [1,8].
        steps: Numbers of steps of the denoiser, such as [8,16].
        cache_refresh: Steps from one full pass to the next: 1 for no cache, 0 for a single full pass.
        length: Tokens of a text.
        timed_tokens: Tokens of the autoregressive model timed at each of five cache lengths; the rest is
            interpolated.
        repeats: Runs of everything timed, taken in turn.
        max_seconds: What has taken this long is not repeated further.
        check: Also make one full run of the smallest model, and say how its time compares.
        seed: Of the texts.
        device: Where to run; float32 on cpu, bfloat16 on cuda.
        output: JSON file to write as well.
        plot: Also draw tokens/s against model size, as a PNG beside `output`.
    """
    file = checked_output(output)
    if plot:
        check_plot(file)

    from fewstep.benchmark.latency import run_latency
    from fewstep.benchmark.latency_settings import LatencySettings
    from fewstep.benchmark.measured_rows import MeasuredRows

    settings = LatencySettings(
        shapes=shapes, batches=batches, steps=steps, cache_refresh=cache_refresh, length=length,
        timed_tokens=timed_tokens, repeats=repeats, max_seconds=max_seconds, check=check, seed=seed,
        device=device,
    )  # fmt: skip
    rows_file = None if file is None else file.with_suffix(".jsonl")
    result = run_latency(settings, announce, MeasuredRows(rows_file))
    print_table(
        ["model", "batch", "steps", "refresh", "seconds", "tokens/s", "GPT-2 tokens/s", "roofline (s)"],
        [latency_cells(row) for row in result["rows"]],
    )
    if plot and file is not None:
        from fewstep.benchmark.plot import plot_latency

        plot_latency(result["rows"], file.with_suffix(".png"))
    finish(result, file)


def quality(
    *,
    models: tuple[str, ...] = ("sotu-teacher", "sotu-student"),
    steps: tuple[int, ...] = (8, 16, 32, 64),
    cache_refresh: tuple[int, ...] = (1, 2, 4, 8, 0),
    int8: bool = False,
    num_samples: int = 16,
    batch_size: int = 4,
    length: int = 256,
    judge: str = "smollm2",
    seed: int = 0,
    device: Device = "cpu",
    output: str | None = None,
    plot: bool = False,
) -> None:
    """Judge what models write with and without kept keys and values: quality against compute and time.

    Prints a table, and last one line of JSON with `rows` of `model, steps, cache_refresh, full_passes,
    gen_ppl, bits_per_byte, entropy, seconds` and standard errors.

    Args:
        models: Shipped models, directories or hub repositories; autoregressive ones have one row.
        steps: Numbers of steps, such as [8,16].
        cache_refresh: Steps from one full pass to the next: 1 for no cache, 0 for a single full pass.
        int8: Also judge each denoiser with the weights of its blocks in 8 bits. Needs torchao.
        num_samples: Texts of each row.
        batch_size: Texts written, and timed, together.
        length: Tokens of a text.
        judge: "smollm2", a directory or a hub repository of a causal language model.
        seed: Of the texts.
        device: Where to run.
        output: JSON file to write as well.
        plot: Also draw quality against passes and seconds, as a PNG beside `output`.
    """
    file = checked_output(output)
    if plot:
        check_plot(file)

    from fewstep.benchmark.quality import QualitySettings, plot_quality, run_quality
    from fewstep.evaluation.samples import Samples

    settings = QualitySettings(
        models=models, steps=steps, cache_refresh=cache_refresh, int8=int8, judge=judge, device=device,
        samples=Samples(num_samples=num_samples, batch_size=batch_size, length=length, seed=seed),
    )  # fmt: skip
    result = run_quality(settings, announce_share)
    print_table(
        ["model", "steps", "refresh", "full passes", "seconds", "gen. perplexity", "bits/byte", "entropy"],
        [quality_cells(row) for row in result["rows"]],
    )
    if plot and file is not None:
        plot_quality(result["rows"], file.with_suffix(".png"))
    finish(result, file)


def quality_cells(row: dict[str, Any]) -> list[str | int]:
    """Return the cells of a row of `bench quality`."""
    return [
        row["model"],
        *steps_and_refresh(row),
        f"{row['full_passes']:.1f}",
        f"{row['seconds']:.2f}",
        f"{row['gen_ppl']:.0f} ±{row['gen_ppl_standard_error']:.0f}",
        f"{row['bits_per_byte']:.3f} ±{row['bits_per_byte_standard_error']:.3f}",
        f"{row['entropy']:.3f} ±{row['entropy_standard_error']:.3f}",
    ]


def steps_and_refresh(row: dict[str, Any]) -> list[str | int]:
    """Return the cells of a row's steps and refresh interval."""
    steps = "AR" if row["steps"] is None else row["steps"]
    return [steps, {None: "", 0: "never"}.get(row["cache_refresh"], str(row["cache_refresh"]))]


def latency_cells(row: dict[str, Any]) -> list[str | int]:
    """Return the cells of a row of `bench latency`."""
    theirs = row.get("hf_tokens_per_second")
    return [
        row["model"],
        row["batch"],
        *steps_and_refresh(row),
        with_spread(row["seconds"], row["spread"]),
        f"{row['tokens_per_second']:.1f}",
        "" if theirs is None else f"{theirs:.1f}",
        f"{row['roofline_seconds']:.2f}",
    ]


def checked_output(output: str | None) -> Path | None:
    """Return the file to write.

    Raises:
        ValueError: if its name does not end in .json, or its directory is not there.
    """
    if output is None:
        return None
    path = Path(output)
    if path.suffix != ".json":
        raise ValueError(f"output is {output!r}; name a file that ends in .json")
    if not path.parent.is_dir():
        raise ValueError(
            f"output is {output!r}, and there is no directory {str(path.parent)!r}; make it first"
        )
    return path


def check_plot(file: Path | None) -> None:
    """Raise ValueError if there is nowhere to put a plot, or nothing to draw it with."""
    from importlib.util import find_spec

    if file is None:
        raise ValueError("plot needs output, beside which the PNG is written; name one")
    if find_spec("matplotlib") is None:
        raise ValueError("plot needs matplotlib, which is not installed; run: pip install 'fewstep[demo]'")


def announce(line: str) -> None:
    """Show a line of progress."""
    print(line, file=sys.stderr, flush=True)


def announce_share(activity: str, done: int, total: int) -> None:
    """Show how much of an activity is done."""
    announce(f"{activity}: {done} of {total}")


def with_spread(median: float, spread: Sequence[float]) -> str:
    """Return a median with its fastest and slowest run."""
    return f"{median:.3g} ({spread[0]:.3g}..{spread[1]:.3g})"


def print_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns for people."""
    lines = [[str(cell) for cell in cells] for cells in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


def finish(result: dict[str, Any], file: Path | None) -> None:
    """Write the result to `file`, if there is one, and print it as one line."""
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result), flush=True)
