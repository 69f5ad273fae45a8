"""The samplers by name; light to import, so that the command line can list them."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fewstep.sampling.loop import Sampler

SamplerName = Literal["ancestral", "analytic", "first-hitting", "confidence"]


def sampler_named(name: str) -> "Sampler":
    """Return a sampler.

    Raises:
        ValueError: if there is none of that name.
    """
    from fewstep.sampling.ancestral import Ancestral
    from fewstep.sampling.confidence import Confidence
    from fewstep.sampling.first_hitting import FirstHitting

    samplers: dict[str, Sampler] = {
        "ancestral": Ancestral(),
        "analytic": Ancestral(),
        "first-hitting": FirstHitting(),
        "confidence": Confidence(),
    }
    if name not in samplers:
        raise ValueError(f"there is no sampler {name!r}; choose one of {', '.join(samplers)}")
    return samplers[name]
