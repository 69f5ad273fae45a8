"""The autoregressive loss against a few-line version."""

import torch

from fewstep.losses.next_token import NextTokenObjective, next_token_sum, shifted_right
from fewstep.models.language_model import AutoregressiveLM

TOKENS = torch.randint(0, 29, (2, 7), generator=torch.Generator().manual_seed(0))


def test_inputs_begin_with_the_start_and_leave_out_the_last() -> None:
    assert shifted_right(torch.tensor([[5, 6, 7], [1, 2, 3]]), 29).tolist() == [[29, 5, 6], [29, 1, 2]]


def test_sum_is_the_log_likelihood_token_by_token(tiny_autoregressive: AutoregressiveLM) -> None:
    """Each token is predicted from the start and the tokens before it, in a pass of its own."""
    expected = 0.0
    for row in TOKENS:
        for i, token in enumerate(row):
            prefix = torch.cat([torch.tensor([29]), row[:i]])[None]
            expected -= tiny_autoregressive(prefix).logits[0, -1].log_softmax(-1)[token].item()
    loss = next_token_sum(tiny_autoregressive, TOKENS)
    torch.testing.assert_close(loss.item(), expected, rtol=1e-5, atol=1e-5)


def test_objective_is_per_token(tiny_autoregressive: AutoregressiveLM) -> None:
    objective = NextTokenObjective()
    batch = objective.prepare(TOKENS, 0)
    assert objective.normalizer(batch) == 14
    assert (
        objective.loss_sum(tiny_autoregressive, batch).item()
        == next_token_sum(tiny_autoregressive, TOKENS).item()
    )
