"""The few-line computation that scores are compared with: one sequence through the judge, nothing else."""

from collections.abc import Sequence

import torch

from fewstep.evaluation.judge import Judge


@torch.no_grad()
def plain_nats(judge: Judge, tokens: Sequence[int], context: Sequence[int] = ()) -> float:
    """Return -log p(tokens | the judge's prefix token, context) in nats."""
    inputs = torch.tensor([[judge.prefix_token_id, *context, *tokens]])
    log_p = judge.model(input_ids=inputs).logits[0].log_softmax(-1)
    return -sum(log_p[len(context) + i, token].item() for i, token in enumerate(tokens))


def tokens_of(judge: Judge, text: str) -> list[int]:
    """Return the judge's tokens of a text."""
    return judge.tokenizer(text, add_special_tokens=False)["input_ids"]
