"""One step of the reverse process: which positions unmask, and the tokens they receive.

The sampler's loop and the teacher's rollout both take their steps here, and draw tokens nowhere else.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.losses.nelbo import DenoiserNetwork
from fewstep.sampling.categorical import draw
from fewstep.sampling.sharpening import Sharpening

CHUNK_ELEMENTS = 2**22
"""Logits held at once when tokens are drawn."""


def bernoulli_positions(
    masked_BL: Tensor, probability_B: Tensor, generators: list[torch.Generator]
) -> Tensor:
    """Return which masked positions (B, L) unmask, each independently with its row's probability.

    A row without masks draws nothing.
    """
    uniform_BL = torch.ones(masked_BL.shape, dtype=torch.float64)
    for row in masked_BL.any(1).nonzero()[:, 0].tolist():
        uniform_BL[row] = torch.rand(
            masked_BL.shape[1],
            generator=generators[row],
            dtype=torch.float64,
            device=generators[row].device,
        )
    chosen_BL = uniform_BL < probability_B.to(uniform_BL.device)[:, None]
    return chosen_BL.to(masked_BL.device) & masked_BL


def draw_tokens(
    denoiser: DenoiserNetwork,
    hidden_rows_ND: Tensor,
    generators_N: list[torch.Generator],
    sharpening: Sharpening = Sharpening(),
) -> Tensor:
    """Return a token for each hidden row, (N,)."""
    return torch.cat([drawn for drawn, _ in _chunks(denoiser, hidden_rows_ND, generators_N, sharpening)])


def draw_tokens_with_probabilities(
    denoiser: DenoiserNetwork,
    hidden_rows_ND: Tensor,
    generators_N: list[torch.Generator],
    sharpening: Sharpening = Sharpening(),
) -> tuple[Tensor, Tensor]:
    """Return a token for each hidden row, and the probability that the network gives it; each (N,).

    That probability is not sharpened: at temperature 0 it would be 1 everywhere.
    """
    tokens, probabilities = [], []
    for drawn, logits in _chunks(denoiser, hidden_rows_ND, generators_N, sharpening):
        tokens.append(drawn)
        probabilities.append(logits.log_softmax(-1).gather(1, drawn[:, None]).squeeze(1).exp())
    return torch.cat(tokens), torch.cat(probabilities)


def _chunks(
    denoiser: DenoiserNetwork,
    hidden_rows_ND: Tensor,
    generators_N: list[torch.Generator],
    sharpening: Sharpening,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield drawn tokens and logits chunk by chunk, so that memory does not grow with N x V."""
    chunk = max(1, CHUNK_ELEMENTS // denoiser.vocab_size)
    for start in range(0, len(hidden_rows_ND), chunk):
        logits = denoiser.head(hidden_rows_ND[start : start + chunk])
        yield draw(sharpening(logits), generators_N[start : start + chunk]), logits


def row_generators(positions_BL: Tensor, generators: list[torch.Generator]) -> list[torch.Generator]:
    """Return the generator of each chosen position's sequence, in the order of `hidden[positions]`."""
    return [generators[row] for row in positions_BL.nonzero()[:, 0].tolist()]
