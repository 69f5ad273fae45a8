"""What a user fixes of a text: its beginning, its end, or everything but some gaps.

Each constraint becomes a row of token ids with the mask wherever the model shall write.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

GAP = re.compile(r"<mask(?::(\d+))?>")


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """One text to complete: `prompt` + written tokens + `suffix`, or `infill` with its gaps written."""

    prompt: str = ""
    """Beginning of the text."""
    suffix: str = ""
    """End of the text."""
    infill: str = ""
    """The whole text, with `<mask:N>` for N tokens to be written; `<mask>` is one."""

    def canvas(self, tokenizer: PreTrainedTokenizerBase, length: int, max_length: int) -> Tensor:
        """Return the ids (L,), masks where tokens are to be written.

        Args:
            length: L for a prompt and a suffix; the text to infill has its own.
            max_length: the longest text that can be written.

        Raises:
            ValueError: if nothing is left to write, or the text is longer than the context.
        """
        if self.infill:
            return self._gaps(tokenizer, max_length)
        if not 1 <= length <= max_length:
            raise ValueError(
                f"length is {length}; this model writes 1 to {max_length} tokens at once, and a denoiser "
                "more with a block_length"
            )
        prompt, suffix = encode(tokenizer, self.prompt), encode(tokenizer, self.suffix)
        gap = length - len(prompt) - len(suffix)
        if gap < 1:
            raise ValueError(
                f"prompt and suffix are {len(prompt) + len(suffix)} tokens and the text is to have {length}; "
                f"shorten them, or raise length (at most {max_length})"
            )
        return torch.tensor([*prompt, *[tokenizer.mask_token_id] * gap, *suffix])

    def _gaps(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tensor:
        if self.prompt or self.suffix:
            raise ValueError("infill is the whole text; it goes with neither prompt nor suffix")
        mask: Any = tokenizer.mask_token_id
        ids: list[int] = []
        end = 0
        for gap in GAP.finditer(self.infill):
            ids += encode(tokenizer, self.infill[end : gap.start()])
            ids += [mask] * int(gap.group(1) or 1)
            end = gap.end()
        ids += encode(tokenizer, self.infill[end:])
        if mask not in ids:
            raise ValueError("the text to infill has no gap; write <mask:8> where 8 tokens are missing")
        if len(ids) > max_length:
            raise ValueError(
                f"the text to infill is {len(ids)} tokens and the context {max_length}; shorten it"
            )
        return torch.tensor(ids)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of `text`, without special tokens of the tokenizer's own."""
    if not text:
        return []
    ids: Any = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def as_list(texts: str | Sequence[str]) -> list[str]:
    """Return one text as a list of one."""
    return [texts] if isinstance(texts, str) else list(texts)


def paired_constraints(
    prompt: str | Sequence[str], suffix: str | Sequence[str], infill: str | Sequence[str]
) -> list[Constraint]:
    """Return a constraint for each prompt, suffix or text to infill; one alone goes with all of the others.

    Raises:
        ValueError: if their numbers do not fit.
    """
    given = {"prompts": as_list(prompt), "suffixes": as_list(suffix), "infills": as_list(infill)}
    count = max(map(len, given.values()))
    for name, texts in given.items():
        if len(texts) not in (1, count):
            raise ValueError(f"{len(texts)} {name} for {count} texts; give one, or one for each")
    prompts, suffixes, infills = (texts * count if len(texts) == 1 else texts for texts in given.values())
    return [
        Constraint(prompt=prompt, suffix=suffix, infill=infill)
        for prompt, suffix, infill in zip(prompts, suffixes, infills, strict=True)
    ]


def canvases(
    constraints: list[Constraint],
    tokenizer: PreTrainedTokenizerBase,
    num_samples: int,
    length: int | None,
    longest: int,
) -> list[Tensor]:
    """Return `num_samples` canvases of each constraint in turn, of `length` tokens or the `longest`.

    Raises:
        ValueError: if a setting is out of range, or a constraint leaves nothing to write.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; ask for at least 1")
    if length is not None and any(constraint.infill for constraint in constraints):
        raise ValueError("a text to infill has its own length; leave length out")
    if length is None:
        length = longest
    return [
        canvas
        for constraint in constraints
        for canvas in [constraint.canvas(tokenizer, length, longest)] * num_samples
    ]


def equal_length_batches(canvases: list[Tensor], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of batches of up to `batch_size` canvases of one length."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    by_length: dict[int, list[int]] = {}
    for index, canvas in enumerate(canvases):
        by_length.setdefault(len(canvas), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]
