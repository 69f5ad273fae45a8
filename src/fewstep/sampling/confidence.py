"""Confidence sampling: draw a token everywhere, keep those the network is surest of.

Source: Chang et al., 2022, "MaskGIT", without its added noise. It does not draw from the model's
distribution: it favours probable tokens, and so lowers entropy.
"""

import torch
from torch import Tensor

from fewstep.sampling.loop import Step


class Confidence:
    """Keeps a fixed number of the most probable drawn tokens a step."""

    def candidates(self, step: Step) -> Tensor:
        """Return the positions (B, L) to predict: all that are masked, in rows that unmask any."""
        counts = torch.tensor(step.counts(), device=step.masked_BL.device)
        return step.masked_BL & (counts > 0)[:, None]

    def accepted(self, step: Step, candidates_BL: Tensor, probabilities_N: Tensor) -> Tensor:
        """Return which candidates (B, L) keep their token: the most probable of each row."""
        confidence = torch.full(candidates_BL.shape, -1.0, device=candidates_BL.device)
        confidence[candidates_BL] = probabilities_N.float()
        kept = torch.zeros_like(candidates_BL)
        for row, count in enumerate(step.counts()):
            kept[row, confidence[row].topk(count).indices] = True
        return kept
