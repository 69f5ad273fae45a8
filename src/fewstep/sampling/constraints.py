"""What a user fixes of a text: its beginning, its end, or everything but some gaps.

Each constraint becomes a row of token ids with the mask wherever the model shall write.
"""

import re
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
