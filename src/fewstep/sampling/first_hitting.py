"""First-hitting sampling: positions unmask one after another in a random order.

The times at which a masking process first hits each position are independent of the network, and
only their order matters to a network that takes no time (Zheng et al., 2024). Each step unmasks the
number of positions expected of its time, instead of a random number. With alpha(t) = 1 - t and at
least as many steps as masked positions this is exact, one token a pass.
"""

import torch
from torch import Tensor

from fewstep.sampling.loop import Step


class FirstHitting:
    """Unmasks a fixed number of uniformly chosen positions a step."""

    def candidates(self, step: Step) -> Tensor:
        """Return the positions (B, L) to predict."""
        chosen = torch.zeros_like(step.masked_BL)
        for row, count in enumerate(step.counts()):
            masked = step.masked_BL[row].nonzero().squeeze(1)
            if count:
                generator = step.generators[row]
                order = torch.randperm(len(masked), generator=generator, device=generator.device)
                chosen[row, masked[order[:count].to(masked.device)]] = True
        return chosen
