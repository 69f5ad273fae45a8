"""Real text that no model was trained on: contexts to measure likelihood, and prompts to continue."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fewstep.data.corpora import Corpus
from fewstep.data.packing import TokenizedCorpus, tokenize_corpus
from fewstep.sampling.constraints import encode

SPARE_CONTEXTS = 2
"""So many times the prompts that are asked for are looked at: some cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A prompt, and how its author went on."""

    prompt: str
    continuation: str


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """How prompts from held-out text are continued, for mauve, self_bleu and conditional_ppl.

    The defaults are the protocol of Deschenaux and Gulcehre (2025): 50 tokens, continued by 50, 5 times.
    """

    num_prompts: int = 1000
    """Prompts, spread evenly over the held-out text."""
    per_prompt: int = 5
    """Continuations of each."""
    prompt_length: int = 50
    """Tokens of a prompt, as the first model's tokenizer counts."""
    length: int = 50
    """Tokens of a continuation, as each model's own tokenizer counts."""
    batch_size: int = 50
    """Continuations made together."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"continuations.{name} is {value}; it must be at least 1")

    def prompts(self, passages: Sequence[Passage]) -> list[str]:
        """Return the prompt of each text: every one `per_prompt` times in a row."""
        return [passage.prompt for passage in passages for _ in range(self.per_prompt)]

    def groups(self, texts: Sequence[str]) -> list[list[str]]:
        """Return `texts` as one list for each prompt."""
        starts = range(0, len(texts), self.per_prompt)
        return [list(texts[start : start + self.per_prompt]) for start in starts]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Text to measure on."""

    corpus: Corpus = Corpus()
    """Documents to measure on."""
    fraction: float = 0.05
    """Share of `corpus` that training held out, as its data.validation_fraction; only that is read. 1 for
    all of it, as zero-shot perplexity needs."""
    num_contexts: int = 128
    """Contexts that val_ppl reads."""
    context_length: int = 256
    """Tokens of a context."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"held_out.fraction is {self.fraction}; it must be above 0 and at most 1")
        if self.num_contexts < 1 or self.context_length < 1:
            raise ValueError("held_out.num_contexts and held_out.context_length must be at least 1")

    def contexts(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Return the contexts of val_ppl, spread evenly over the text, (contexts, L) int64.

        Raises:
            ValueError: if there is no such corpus, or it is shorter than a context.
        """
        tokenized = self._tokenized(tokenizer, self.context_length)
        return tokenized.held_out(context_length=self.context_length, max_contexts=self.num_contexts)

    def _tokenized(self, tokenizer: PreTrainedTokenizerBase, context_length: int) -> TokenizedCorpus:
        return tokenize_corpus(
            self.corpus,
            tokenizer,
            validation_corpus=self.corpus if self.fraction == 1 else None,
            validation_fraction=self.fraction,
            context_length=context_length,
        )

    def passages(self, tokenizer: PreTrainedTokenizerBase, wanted: Continuations) -> list[Passage]:
        """Return `wanted.num_prompts` passages of one document each, spread evenly over the text.

        A passage whose prompt would be cut into other tokens when it is read again is left out, so that
        every prompt has `wanted.prompt_length` tokens.

        Raises:
            ValueError: if there are fewer.
        """
        count, cut = wanted.num_prompts, wanted.prompt_length
        length = cut + wanted.length
        tokenized = self._tokenized(tokenizer, length)
        contexts = tokenized.held_out(context_length=length, max_contexts=SPARE_CONTEXTS * count)
        found = []
        for ids in contexts.tolist():
            prompt, continuation = (str(tokenizer.decode(part)) for part in (ids[:cut], ids[cut:]))
            if tokenizer.eos_token_id not in ids and encode(tokenizer, prompt) == ids[:cut]:
                found.append(Passage(prompt=prompt, continuation=continuation))
        if len(found) < count:
            raise ValueError(
                f"the held-out text of {self.corpus.source!r} has {len(found)} passages of {length} tokens, "
                f"and continuations.num_prompts is {count}; lower it, or give more text"
            )
        chosen = torch.linspace(0, len(found) - 1, count).round().int().tolist()
        return [found[index] for index in chosen]
