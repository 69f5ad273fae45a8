"""Ancestral sampling: each masked position unmasks independently with probability rho(t, s).

The "analytic" (Tweedie) sampler of score-based models is the same distribution here. With the score
of a denoiser, alpha / (1 - alpha) * p, its probability of unmasking to token v is
(alpha_s / alpha_t - 1) * alpha_t / (1 - alpha_t) * p_v = rho(t, s) * p_v (Lou et al., 2024, theorem
4.2; Sahoo et al., 2024). So "analytic" is another name of this sampler; a test compares the two
formulas.
"""

from torch import Tensor

from fewstep.diffusion.masking import unmask_probability
from fewstep.sampling.loop import Step
from fewstep.sampling.unmasking import bernoulli_positions


class Ancestral:
    """Draws from the reverse process of the masking process; exact for any number of steps."""

    def candidates(self, step: Step) -> Tensor:
        """Return the positions (B, L) to predict."""
        rho = unmask_probability(step.t, step.s, schedule=step.schedule)
        return bernoulli_positions(step.masked_BL, rho.expand(len(step.masked_BL)), step.generators)
