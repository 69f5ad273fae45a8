"""One evaluation of several models: samples are written once, and every metric reads them.

    from fewstep.evaluation.evaluate import evaluate

    result = evaluate(models=["sotu-teacher", "sotu-student"], steps=[8, 16], output="evaluation")
    print(result.rows[0]["gen_ppl"])

Everything that is finished is a file under `output`, named by a hash of all that decides it: sample sets
(`fewstep.evaluation.samples`) and `results/`. The same call again, in as many processes, does what is
missing; other metrics, steps or temperatures are added to what is there.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from fewstep.evaluation import frontier
from fewstep.evaluation.cells import cells_of
from fewstep.evaluation.held_out import Continuations, HeldOut
from fewstep.evaluation.jobs import Progress, examples_of, jobs_of, rows_of, run_jobs
from fewstep.evaluation.judge import SMOLLM2
from fewstep.evaluation.lambada import load_passages
from fewstep.evaluation.measurements import measurements_of
from fewstep.evaluation.processes import launched_device, launched_share
from fewstep.evaluation.samples import Samples, replace_json
from fewstep.evaluation.sources import Sources
from fewstep.sampling.samplers import SamplerName
from fewstep.sampling.text_model import load

REPORT = "report.html"
DEFAULT_METRICS = ("gen_ppl", "bits_per_byte", "entropy", "distinct_2", "seconds_per_sample", "val_ppl")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found."""

    rows: list[dict[str, Any]]
    """`model, steps, temperature, cache_refresh, top_p` and the metrics of each way to write."""
    frontier: dict[str, Any]
    """Generative perplexities at matched entropy; see `fewstep.evaluation.frontier.matched`."""
    failures: list[str]
    """What could not be measured, a line each; rows lack it."""


def evaluate(
    *,
    models: tuple[str, ...],
    metrics: tuple[str, ...] = DEFAULT_METRICS,
    steps: tuple[int, ...] = (8, 16, 32, 64),
    temperatures: tuple[float, ...] = (1.0,),
    cache_refresh: tuple[int, ...] = (1,),
    autoregressive_top_p: tuple[float, ...] = (1.0,),
    sampler: SamplerName = "ancestral",
    samples: Samples = Samples(num_samples=64, batch_size=8),
    continuations: Continuations = Continuations(),
    held_out: HeldOut = HeldOut(),
    lambada: str = "sotu-cloze",
    judge: str = SMOLLM2,
    after_end: Literal["keep", "drop"] = "keep",
    featurizer: str = SMOLLM2,
    matched_entropy: float | None = None,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    output: str = "evaluation",
    progress: Progress | None = None,
) -> Evaluation | None:
    """Measure quality, diversity and time of one or several models at each number of steps.

    Writes `output`/report.html and `output`/rows.json. The command also prints a table, and last one line
    of JSON with `rows` of `model, steps, temperature, cache_refresh, top_p` and a key for each metric.
    Repeated, it goes on where it was stopped. `accelerate launch --module fewstep eval ...` shares the
    work among processes.

    Args:
        models: Shipped models, checkpoint directories or hub repositories. The first one's entropy is what
            frontiers are matched at, so name the teacher first.
        metrics: Of gen_ppl, gen_ppl_sample_mean, bits_per_byte, entropy, distinct_1, distinct_2,
            distinct_3, seconds_per_sample, full_passes; self_bleu, mauve, conditional_ppl; val_ppl,
            val_bits_per_byte, lambada_accuracy, lambada_ppl.
        steps: Numbers of steps of each denoiser.
        temperatures: Sampling temperatures of every model. Several give a frontier.
        cache_refresh: Steps from one full pass to the next: 1 is exact, 0 is a single full pass.
        autoregressive_top_p: Nuclei that autoregressive models are sampled with; 1 is all tokens.
        sampler: How denoisers unmask.
        samples: Texts that begin with nothing.
        continuations: Texts that continue prompts, for self_bleu, mauve and conditional_ppl.
        held_out: Text for val_ppl and for prompts.
        lambada: Passages for lambada_accuracy and lambada_ppl: "sotu-cloze", a JSONL file, or a data set of
            the hub such as "EleutherAI/lambada_openai".
        judge: "smollm2", a directory or a hub repository of a causal language model.
        after_end: Whether gen_ppl reads what a text has behind its first end-of-text token.
        featurizer: Model whose features mauve compares.
        matched_entropy: Unigram entropy, in nats, at which frontiers are compared; by default that of the
            first model at its most steps and the temperature nearest to 1.
        device, precision: See `fewstep.load`.
        output: Directory of samples, results and report.
        progress: Called as the work goes on.

    Returns:
        The evaluation; None in all but the first of several processes.

    Raises:
        ValueError: if a setting is out of range, or a model, the judge, text or a package is not there.
    """
    chosen = measurements_of(metrics)
    check(models, Path(output))
    device = launched_device(device)
    loaded = {name: load(name, device=device, precision=precision) for name in models}
    first = loaded[models[0]]
    cells = cells_of(
        loaded,
        steps=steps,
        temperatures=temperatures,
        cache_refresh=cache_refresh,
        autoregressive_top_p=autoregressive_top_p,
        sampler=sampler,
    )
    from fewstep.evaluation.evaluation_report import write_evaluation_report

    reads = {one.reads for one in chosen}
    sources = Sources(
        samples=samples,
        continuations=continuations,
        held_out=held_out,
        passages=held_out.passages(first.tokenizer, continuations) if "continuations" in reads else [],
        cloze=load_passages(lambada) if "lambada" in {one.name for one in chosen} else [],
        judge_name=judge,
        featurizer=featurizer,
        after_end=after_end,
        device=str(first.network.device),
    )
    share = launched_share()
    jobs = jobs_of(chosen, cells, loaded, sources, Path(output))
    failures = run_jobs(jobs, loaded, sources, share, progress or _silent)
    if share.process > 0:
        return None
    rows = rows_of(cells, jobs, metrics)
    matched = frontier.matched(rows, matched_entropy)
    replace_json(Path(output) / "rows.json", {"rows": rows, "frontier": matched})
    write_evaluation_report(
        Path(output) / REPORT,
        rows=rows,
        matched=matched,
        examples=examples_of(cells, jobs),
        sources=sources,
        failures=failures,
    )
    return Evaluation(rows=rows, frontier=matched, failures=failures)


def check(models: tuple[str, ...], output: Path) -> None:
    """Raise ValueError if the models or `output` will not do, or the report cannot be drawn."""
    if not models or len(set(models)) < len(models):
        raise ValueError(f"models is {list(models)}; name at least one, and none twice")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {str(output)!r} is a file; name a directory")
    if find_spec("matplotlib") is None:
        raise ValueError(
            "the report needs matplotlib, which is not installed; run: pip install 'fewstep[eval]'"
        )


def _silent(activity: str, done: int, total: int) -> None:
    pass
