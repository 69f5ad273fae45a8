"""Autoregressive sampling with a cache of keys and values: one token of every row a pass."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.models.language_model import AutoregressiveLM
from fewstep.sampling.categorical import draw
from fewstep.sampling.loop import Progress
from fewstep.sampling.sharpening import Sharpening


@torch.inference_mode()
def continue_in_steps(
    model: AutoregressiveLM,
    tokens_BL: Tensor,
    *,
    prompt_lengths: list[int],
    generators: list[torch.Generator],
    sharpening: Sharpening = Sharpening(),
    use_cache: bool = True,
) -> Iterator[Progress]:
    """Yield the batch after each pass; the last has all L tokens of each row.

    Args:
        tokens_BL: ids; the first `prompt_lengths[b]` of row b are its prompt, the rest is written.
        generators: one for each row, so that its text does not depend on the batch.
        use_cache: without it, each pass reads the whole row again, to the same result.
    """
    batch, length = tokens_BL.shape
    tokens_BL = tokens_BL.clone()
    start_B1 = torch.full_like(tokens_BL[:, :1], model.start_token_id)
    inputs_BL = torch.cat([start_B1, tokens_BL], dim=1)
    cache = model.new_cache(batch, length) if use_cache else None
    first = min(prompt_lengths)
    read = computed = 0
    for position in range(first, length):
        rows_BLD = model.hidden(inputs_BL[:, read : position + 1], cache)
        drawn_B = draw_where_asked(model, rows_BLD[:, -1], position, prompt_lengths, generators, sharpening)
        written_B = torch.where(drawn_B >= 0, drawn_B, tokens_BL[:, position])
        tokens_BL[:, position] = inputs_BL[:, position + 1] = written_B
        computed += rows_BLD.shape[0] * rows_BLD.shape[1]
        read = position + 1 if use_cache else 0
        step = position - first + 1
        yield Progress(tokens_BL.clone(), step, length - first, step, computed)


def draw_where_asked(
    model: AutoregressiveLM,
    rows_BD: Tensor,
    position: int,
    prompt_lengths: list[int],
    generators: list[torch.Generator],
    sharpening: Sharpening,
) -> Tensor:
    """Return the token drawn for each row (B,), -1 where the prompt still gives it."""
    asked = [row for row, prompt_length in enumerate(prompt_lengths) if position >= prompt_length]
    drawn_B = torch.full((len(prompt_lengths),), -1, device=rows_BD.device)
    logits = sharpening(model.head(rows_BD[asked]))
    drawn_B[asked] = draw(logits, [generators[row] for row in asked])
    return drawn_B
