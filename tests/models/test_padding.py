"""Padded batches: each sequence has the logits that it has alone, wherever its padding is."""

import pytest
import torch
from torch import Tensor

from fewstep.models.language_model import AutoregressiveLM, Denoiser

LENGTHS = [3, 9, 6, 1]
ROWS = [torch.randint(0, 30, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]


@pytest.fixture(params=["denoiser", "autoregressive"])
def model(
    request: pytest.FixtureRequest, tiny_denoiser: Denoiser, tiny_autoregressive: AutoregressiveLM
) -> Denoiser | AutoregressiveLM:
    return tiny_denoiser if request.param == "denoiser" else tiny_autoregressive


def padded(left: bool, padding: int) -> tuple[Tensor, Tensor]:
    """Return tokens and attention mask, (4, 9) each."""
    tokens, mask = torch.full((4, 9), padding), torch.zeros(4, 9, dtype=torch.int64)
    for b, row in enumerate(ROWS):
        place = slice(9 - len(row), 9) if left else slice(0, len(row))
        tokens[b, place], mask[b, place] = row, 1
    return tokens, mask


@pytest.mark.parametrize("left", [True, False])
@torch.no_grad()
def test_a_padded_sequence_has_the_logits_it_has_alone(
    model: Denoiser | AutoregressiveLM, left: bool
) -> None:
    tokens, mask = padded(left, padding=0)
    logits = model(tokens, attention_mask=mask).logits
    for b, row in enumerate(ROWS):
        alone = model(row[None]).logits[0]
        torch.testing.assert_close(logits[b][mask[b] == 1], alone, rtol=1e-5, atol=1e-5)
    unmasked = model(tokens).logits[0][mask[0] == 1]
    if left or model.causal is False:
        assert (unmasked - model(ROWS[0][None]).logits[0]).abs().max() > 0.01, "without a mask it is seen"


@torch.no_grad()
def test_what_padding_is_made_of_has_no_part(model: Denoiser | AutoregressiveLM) -> None:
    one, other = (model(*padded(True, padding)).logits for padding in (0, 17))
    mask = padded(True, 0)[1] == 1
    assert torch.equal(one[mask], other[mask])
    assert torch.isfinite(one).all()


def test_padding_gives_no_gradient_that_is_no_number(model: Denoiser | AutoregressiveLM) -> None:
    tokens, mask = padded(True, padding=0)
    labels = torch.where(mask == 1, tokens.clamp_max(28), -100)
    model(tokens, mask, labels).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_a_mask_that_hides_nothing_changes_no_bit(model: Denoiser | AutoregressiveLM) -> None:
    tokens = torch.stack([ROWS[1], ROWS[1].flip(0)])
    assert torch.equal(model(tokens, torch.ones_like(tokens)).logits, model(tokens).logits)
