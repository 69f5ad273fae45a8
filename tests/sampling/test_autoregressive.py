"""Autoregressive sampling: with and without the cache the same tokens, and the right ones."""

import pytest
import torch
from torch import Tensor

from fewstep import seeds
from fewstep.models.language_model import AutoregressiveLM
from fewstep.sampling.autoregressive import continue_in_steps
from fewstep.sampling.categorical import draw
from fewstep.sampling.sharpening import Sharpening

LENGTH = 14


def canvas(prompt_lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return a batch with prompts of these lengths and the mask behind, and where the masks are."""
    given = torch.randint(0, 29, (len(prompt_lengths), LENGTH), generator=torch.Generator().manual_seed(0))
    masked = torch.arange(LENGTH) >= torch.tensor(prompt_lengths)[:, None]
    return given.masked_fill(masked, 29), masked


def written(
    model: AutoregressiveLM,
    prompt_lengths: list[int],
    *,
    use_cache: bool = True,
    sharpening: Sharpening = Sharpening(),
    first_row: int = 0,
    tokens_BL: Tensor | None = None,
) -> Tensor:
    *_, last = continue_in_steps(
        model,
        canvas(prompt_lengths)[0] if tokens_BL is None else tokens_BL,
        prompt_lengths=prompt_lengths,
        generators=seeds.sequence_generators(7, count=len(prompt_lengths), first=first_row),
        sharpening=sharpening,
        use_cache=use_cache,
    )
    return last.tokens_BL


@torch.inference_mode()
def written_by_definition(
    model: AutoregressiveLM, row: int, prompt_lengths: list[int], sharpening: Sharpening
) -> list[int]:
    """One row, one token after another, each from a full pass over the row's own tokens."""
    generator = seeds.generator(7, row)
    tokens = canvas(prompt_lengths)[0][row, : prompt_lengths[row]].tolist()
    while len(tokens) < LENGTH:
        logits = model.head(model.hidden(torch.tensor([[model.start_token_id, *tokens]]))[:, -1])
        tokens.append(draw(sharpening(logits), [generator]).item())
    return tokens


@pytest.mark.parametrize("prompt_lengths", [[0], [0, 0, 0], [5, 5], [0, 3, 13, 7], [9, 2]])
@pytest.mark.parametrize("sharpening", [Sharpening(), Sharpening(temperature=0.7, top_k=9, top_p=0.8)])
def test_cached_equals_uncached_equals_the_definition(
    tiny_autoregressive: AutoregressiveLM, prompt_lengths: list[int], sharpening: Sharpening
) -> None:
    cached = written(tiny_autoregressive, prompt_lengths, sharpening=sharpening)
    assert torch.equal(
        cached, written(tiny_autoregressive, prompt_lengths, sharpening=sharpening, use_cache=False)
    )
    for row in range(len(prompt_lengths)):
        expected = written_by_definition(tiny_autoregressive, row, prompt_lengths, sharpening)
        assert cached[row].tolist() == expected


def test_prompts_stay_and_all_else_is_written(tiny_autoregressive: AutoregressiveLM) -> None:
    prompt_lengths = [4, 0, 11]
    tokens_BL, masked = canvas(prompt_lengths)
    result = written(tiny_autoregressive, prompt_lengths)
    assert torch.equal(result[~masked], tokens_BL[~masked])
    assert (result < 29).all()


def test_a_row_does_not_depend_on_its_batch(tiny_autoregressive: AutoregressiveLM) -> None:
    together = written(tiny_autoregressive, [3, 8])
    tokens_BL, _ = canvas([3, 8])
    alone = written(tiny_autoregressive, [8], first_row=1, tokens_BL=tokens_BL[1:])
    assert torch.equal(together[1], alone[0])


def test_a_pass_a_token_and_a_snapshot_a_pass(tiny_autoregressive: AutoregressiveLM) -> None:
    passes: list[int] = []
    hook = tiny_autoregressive.backbone.register_forward_hook(
        lambda module, inputs, output: passes.append(inputs[0].shape[1])
    )
    progress = list(
        continue_in_steps(
            tiny_autoregressive,
            canvas([5, 6])[0],
            prompt_lengths=[5, 6],
            generators=seeds.sequence_generators(0, count=2),
        )
    )
    hook.remove()
    assert passes == [6] + [1] * 8  # start and prompt at once, then token by token
    assert [p.num_forwards for p in progress] == list(range(1, 10))
    assert [p.step for p in progress] == list(range(1, 10))
    assert {p.num_steps for p in progress} == {9}
    masks_left = [(p.tokens_BL == 29).sum(1).tolist() for p in progress]
    assert masks_left == [[8 - i, min(8, 8 - i)] for i in range(9)]
