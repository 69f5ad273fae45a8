"""Multiple choice and more through EleutherAI's lm-evaluation-harness, as its model `fewstep`.

    python -m fewstep.evaluation.harness run --model fewstep --model_args pretrained=sotu-student,mc_num=32 \\
        --device auto --tasks arc_easy

It is the command line of the harness (`pip install 'fewstep[harness]'`), to which the model is known. From
Python, `fewstep.evaluation.harness.harness(model, ["arc_easy"])`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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

from fewstep.data.chat import up_to_separator
from fewstep.evaluation.completions import Completion, completion, score_completions
from fewstep.sampling.constraints import encode
from fewstep.sampling.text_model import TextModel, load

DEFAULT_NEW_TOKENS = 64
"""Tokens to generate where a task does not say."""
LENGTH_STEP = 32
"""Lengths of generated texts are rounded up to a multiple, so that more of them share a batch."""
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
        """Return what the model writes behind each context, up to a stop string or separator.

        Requests of the same settings and, up to `LENGTH_STEP`, the same length are written together.
        """
        asked = [self._prompt(*request.args) for request in requests]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, prompt in enumerate(asked):
            groups.setdefault((prompt.length, prompt.temperature, prompt.top_p), []).append(number)
        texts = [""] * len(requests)
        for (length, temperature, top_p), numbers in groups.items():
            generation = self.model.generate(
                prompt=[asked[number].context for number in numbers],
                length=length,
                num_steps=self.num_steps,
                temperature=temperature,
                top_p=top_p,
                seed=self.seed,
                batch_size=self.batch_size,
            )
            for number, tokens in zip(numbers, generation.tokens, strict=True):
                texts[number] = asked[number].answer(self.model, tokens)
        return texts

    def _scores(self, completions: list[Completion]) -> list[tuple[float, bool]]:
        scores = score_completions(
            self.model.network,
            completions,
            num_samples=self.mc_num,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        return [(-score.nats, score.is_predicted) for score in scores]

    def _prompt(self, context: str, settings: dict[str, Any]) -> "_Prompt":
        """Return what a request asks for; a context too long to leave room for it loses its beginning."""
        longest = self.model.network.max_length
        new_tokens = int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS))
        ids = encode(self.model.tokenizer, context)
        if len(ids) + new_tokens > longest:
            new_tokens = min(new_tokens, longest // 2)
            context = self.model.decode(ids[len(ids) + new_tokens - longest :])
            ids = encode(self.model.tokenizer, context)
        sampled, until = settings.get("do_sample", False), settings.get("until", [])
        return _Prompt(
            context=context,
            start=len(ids),
            end=len(ids) + new_tokens,
            length=min(math.ceil((len(ids) + new_tokens) / LENGTH_STEP) * LENGTH_STEP, longest),
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(settings.get("top_p", 1.0)) if sampled else 1.0,
            stops=[until] if isinstance(until, str) else until,
        )


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """What one request for a text asks for."""

    context: str
    start: int
    end: int
    """The answer's tokens, of the text's."""
    length: int
    """Tokens of the text that is written."""
    temperature: float
    top_p: float
    stops: list[str]

    def answer(self, model: TextModel, tokens: list[int]) -> str:
        """Return what a text holds of the answer before its separator and all stop strings."""
        text = model.decode(up_to_separator(tokens[self.start : self.end], model.tokenizer.eos_token_id))
        for stop in self.stops:
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
