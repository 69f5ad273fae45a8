"""How much float32 draws flatter a model: generative perplexity and entropy beside those of exact ones.

    python benchmarks/ablations/float32_draws.py sotu-teacher 16 64 256

Existing code draws the argmax of probability / noise over all tokens and the mask, with noise made of
float32 uniform numbers. Those have 24 bits, so the noise has a smallest value, and tokens in the tail never
win: the text has a lower entropy than the model. Found by Zheng et al., 2024, "Masked Diffusion Models are
Secretly Time-Agnostic Masked Models and Exploit Inaccurate Categorical Sampling". Ends with one line of JSON.
"""

import json
import statistics
import sys
from types import ModuleType

import torch
from torch import Tensor

import fewstep
from fewstep.benchmark.plain_code import load_plain
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.evaluation.diversity import unigram_entropy
from fewstep.evaluation.generative_perplexity import generative_perplexity
from fewstep.evaluation.judge import load_judge
from fewstep.sampling.text_model import TextModel

TEXTS, BATCH, LENGTH = 48, 16, 256


def float32_race(weights_BLC: Tensor, generator: torch.Generator) -> Tensor:
    """Return a category (B, L) drawn in proportion to the weights, but for what float32 cuts off."""
    weights_BLC = weights_BLC.float()
    return (weights_BLC / -torch.rand(weights_BLC.shape, generator=generator).log()).argmax(-1)


def written(model: TextModel, plain: ModuleType, num_steps: int) -> Tensor:
    """Return the tokens (TEXTS, LENGTH) that the plain sampler writes."""
    masks_BL = torch.full((BATCH, LENGTH), model.network.mask_token_id)
    return torch.cat(
        [
            plain.plain_unmask(
                model.network,
                masks_BL,
                num_steps=num_steps,
                schedule=SCHEDULES["log-linear"],
                generator=torch.Generator().manual_seed(seed),
            )
            for seed in range(TEXTS // BATCH)
        ]
    )


def main(name: str, steps: list[int]) -> None:
    model, judge = fewstep.load(name), load_judge()
    exact, float32 = load_plain("float32"), load_plain("float32")
    float32.race = float32_race
    rows = []
    for num_steps in steps:
        for draws, plain in (("exact", exact), ("float32", float32)):
            tokens_NL = written(model, plain, num_steps)
            judged = generative_perplexity([model.tokenizer.decode(row) for row in tokens_NL.tolist()], judge)
            entropy = statistics.fmean(unigram_entropy([row]) for row in tokens_NL)
            rows.append(
                {
                    "model": name,
                    "steps": num_steps,
                    "draws": draws,
                    "gen_ppl": judged.perplexity,
                    "gen_ppl_standard_error": judged.perplexity_standard_error,
                    "bits_per_byte": judged.bits_per_byte,
                    "entropy": entropy,
                }
            )
            print(rows[-1], file=sys.stderr)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1], [int(steps) for steps in sys.argv[2:]])
