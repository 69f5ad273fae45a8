"""Conditional perplexity: how likely a judge finds continuations, given the prompts they continue.

Prompt and continuation are tokenized as one text, as the judge would meet them. What counts are the
tokens from the first one on that differs from the prompt's own tokens: where the judge has a token that
reaches over the boundary, it counts as a whole, and the judge reads the prompt up to that token.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile

from fewstep.evaluation.generative_perplexity import GenerativePerplexity
from fewstep.evaluation.judge import Judge
from fewstep.evaluation.scoring import BATCH_TOKENS, Window, score, window_length


def conditional_perplexity(
    prompts: Sequence[str],
    continuations: Sequence[str],
    judge: Judge,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> GenerativePerplexity:
    """Return what `judge` finds of `continuations`, each given its prompt, in float32.

    nats = -log p(tokens of the continuation | prefix, tokens of the prompt). The bytes are those of the
    continuations.

    Args:
        prompts: What is continued; an empty one leaves the judge's prefix token alone.
        continuations: The text that follows each prompt, with the space between them, if there is one.
        judge: The model that scores them.
        batch_tokens: Tokens in one forward pass, prompts and padding included; one pair at least.
        progress: Called after each forward pass with the tokens scored so far, and in all.

    Raises:
        ValueError: if there is no pair, prompts and continuations differ in number, a continuation is
            empty, a pair is longer than the judge reads, or logits are not finite.
    """
    if len(prompts) != len(continuations):
        raise ValueError(
            f"there are {len(prompts)} prompts and {len(continuations)} continuations; "
            "pass a prompt for each continuation"
        )
    if not continuations:
        raise ValueError("there is nothing to score; pass one or more continuations with their prompts")
    if "" in continuations:
        raise ValueError(
            f"continuation {list(continuations).index('')} of {len(continuations)} is empty; "
            "leave empty ones out before scoring"
        )
    windows = _windows(prompts, continuations, judge)
    nats = score(judge, windows, batch_tokens=batch_tokens, progress=progress)
    return GenerativePerplexity(
        nats=tuple(nats),
        num_tokens=tuple(len(window.targets) for window in windows),
        num_bytes=tuple(len(continuation.encode()) for continuation in continuations),
    )


def _windows(prompts: Sequence[str], continuations: Sequence[str], judge: Judge) -> list[Window]:
    def tokenized(texts: list[str]) -> list[list[int]]:
        return judge.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    together = tokenized([a + b for a, b in zip(prompts, continuations, strict=True)])
    limit = window_length(judge)
    windows = []
    for index, (alone, tokens) in enumerate(zip(tokenized(list(prompts)), together, strict=True)):
        if len(tokens) > limit:
            raise ValueError(
                f"prompt and continuation {index} are {len(tokens)} tokens for the judge {judge.name!r}, "
                f"which reads {limit} at once; shorten the prompt"
            )
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(alone, tokens, strict=False)))
        windows.append(Window(text=index, context=tokens[:shared], targets=tokens[shared:]))
    return windows
