"""Multiple choice and more through EleutherAI's lm-evaluation-harness, as its model `fewstep`.

    python -m fewstep.evaluation.harness run --model fewstep --model_args pretrained=sotu-student,mc_num=32 \\
        --device auto --tasks arc_easy

It is the command line of the harness (`pip install 'fewstep[harness]'`), to which the model is known. From
Python, `fewstep.evaluation.harness.harness(model, ["arc_easy"])`.
"""

from collections.abc import Sequence
from typing import Any, Literal

try:
    import lm_eval
except ImportError as error:
    raise ValueError(
        "the harness needs lm_eval, which is not installed; run: pip install 'fewstep[harness]'"
    ) from error
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager

from fewstep.evaluation.completions import Completion, completion, score_completions
from fewstep.sampling.constraints import encode
from fewstep.sampling.text_model import TextModel, load

DEFAULT_NEW_TOKENS = 64
"""Tokens to generate where a task does not say."""
BOOTSTRAPS = 1000
"""For the standard errors of metrics that are no means."""


class HarnessModel(LM):
    """A denoiser or autoregressive model for the harness.

    Log-likelihoods are exact for an autoregressive model and bounds for a denoiser, as in
    `score_completions`; `is_greedy` is its `is_predicted`.

    Args:
        pretrained: A model, or what `fewstep.load` takes.
        mc_num: Masks drawn to estimate a bound, `num_samples` of `score_completions`.
        batch_size: Sequences in one forward pass.
        seed: Of the masks and of generated text.
        num_steps: Steps of a denoiser in generation; by default those it is meant for.
        device, precision: See `Inference`.
        max_batch_size: Not used; the harness passes it.
    """

    def __init__(
        self,
        pretrained: str | TextModel,
        mc_num: int = 32,
        batch_size: int | str = 16,
        seed: int = 0,
        num_steps: int | None = None,
        device: str = "auto",
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal():
            raise ValueError(f"batch_size is {batch_size!r}; it must be a number")
        self.model = (
            pretrained
            if isinstance(pretrained, TextModel)
            else load(pretrained, device=device, precision=precision)
        )
        self.mc_num, self.batch_size, self.seed, self.num_steps = mc_num, int(batch_size), seed, num_steps

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return log p(continuation | context) of each request, and whether the continuation is predicted."""
        pairs = [completion(self.model.tokenizer, *request.args) for request in requests]
        return self._scores(pairs)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return log p of each text, read in windows of the model's context, each begun anew."""
        length = self.model.network.max_length
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = encode(self.model.tokenizer, request.args[0])
            starts = range(0, len(ids), length)
            windows += [Completion([], ids[start : start + length]) for start in starts]
            owners += [number] * len(starts)
        totals = [0.0] * len(requests)
        for owner, (log_p, _) in zip(owners, self._scores(windows), strict=True):
            totals[owner] += log_p
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return what the model writes behind each context, up to a stop string or separator."""
        return [self._continuation(*request.args) for request in requests]

    def _scores(self, completions: list[Completion]) -> list[tuple[float, bool]]:
        scores = score_completions(
            self.model.network,
            completions,
            num_samples=self.mc_num,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        return [(-score.nats, score.is_predicted) for score in scores]

    def _continuation(self, context: str, settings: dict[str, Any]) -> str:
        """Return one text; a context too long to leave room for it loses its beginning."""
        tokenizer, longest = self.model.tokenizer, self.model.network.max_length
        new_tokens = int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS))
        ids = encode(tokenizer, context)
        if len(ids) + new_tokens > longest:
            new_tokens = min(new_tokens, longest // 2)
            context = self.model.decode(ids[len(ids) + new_tokens - longest :])
            ids = encode(tokenizer, context)
        sampled = settings.get("do_sample", False)
        generation = self.model.generate(
            prompt=context,
            length=min(len(ids) + new_tokens, longest),
            num_steps=self.num_steps,
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(settings.get("top_p", 1.0)) if sampled else 1.0,
            seed=self.seed,
        )
        written = generation.tokens[0][len(ids) :]
        if tokenizer.eos_token_id in written:
            written = written[: written.index(tokenizer.eos_token_id)]
        text = self.model.decode(written)
        stops = settings.get("until", [])
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop)[0] if stop else text
        return text


register_model("fewstep")(HarnessModel)  # not as a decorator, which would hide its parameters


def harness(
    model: TextModel,
    tasks: Sequence[str],
    *,
    task_manager: TaskManager | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    mc_num: int = 32,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return the harness's own results, a dictionary of metrics for each task.

    Args:
        tasks: Names of tasks that `task_manager` knows.
        task_manager: By default it knows the harness's tasks; with `TaskManager(include_path=...)` those of
            your YAML files, too.
        limit: Examples of each task; by default all.
        num_fewshot: Examples shown before each; by default what the task says.
        mc_num, batch_size, seed: See `HarnessModel`.

    Raises:
        ValueError: if there is no such task, or a setting is out of range.
    """
    manager = task_manager or TaskManager()
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown or not tasks:
        names = ", ".join(map(repr, unknown)) or "none is given"
        raise ValueError(f"the harness has no such task: {names}; name one that your task_manager knows")
    evaluate: Any = lm_eval.simple_evaluate  # its decorator hides its parameters
    found = evaluate(
        HarnessModel(model, mc_num=mc_num, batch_size=batch_size, seed=seed),
        tasks=list(tasks),
        limit=limit,
        num_fewshot=num_fewshot,
        task_manager=manager,
        bootstrap_iters=BOOTSTRAPS,
        log_samples=False,
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
        fewshot_random_seed=seed,
    )
    return dict(found["results"])


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
