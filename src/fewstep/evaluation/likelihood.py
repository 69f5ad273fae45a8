"""Perplexity on held-out text: a bound for a denoiser, exact for an autoregressive model.

Any text will do: `packed` cuts documents into contexts as training does, and `text_likelihood` measures a
model on them, so that the perplexity on text of another kind is "zero-shot".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fewstep import seeds
from fewstep.data.corpora import Corpus
from fewstep.data.loader import validation_batch
from fewstep.data.packing import tokenized
from fewstep.diffusion.masking import corrupt, low_discrepancy_times, plain_ids
from fewstep.diffusion.schedule import SCHEDULES, Schedule
from fewstep.losses.fused_head import CHUNK_ELEMENTS, log_probabilities
from fewstep.losses.nelbo import DenoiserNetwork, bound_weights
from fewstep.losses.next_token import shifted_right
from fewstep.models.language_model import LanguageModel
from fewstep.sampling.text_model import TextModel


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood in nats a token (a bound for a denoiser), with its standard error."""

    nats_per_token: float
    standard_error: float
    num_tokens: int
    num_bytes: float = math.nan
    """UTF-8 bytes of the text that the tokens stand for, where that is known."""

    @property
    def perplexity(self) -> float:
        """exp(nats a token)."""
        return math.exp(self.nats_per_token)

    @property
    def perplexity_standard_error(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * self.standard_error

    @property
    def bits_per_byte(self) -> float:
        """nats of all tokens / ln 2 / bytes of the text; it compares across tokenizers."""
        return self.nats_per_token * self.num_tokens / math.log(2) / self.num_bytes

    @property
    def bits_per_byte_standard_error(self) -> float:
        """Standard error of `bits_per_byte`, the text being given."""
        return self.standard_error * self.num_tokens / math.log(2) / self.num_bytes


@torch.no_grad()
def likelihood(
    model: LanguageModel,
    tokens: Tensor,
    *,
    schedule: Schedule,
    num_samples: int = 1,
    batch_size: int = 16,
    seed: int = 0,
) -> Likelihood:
    """Return the likelihood of sequences `tokens` (sequences, L), of their tokens that are not given.

    A denoiser's bound is estimated at `num_samples` times a sequence. Over all sequences and samples the
    times are of low discrepancy, and those of one sequence are too: (j + u_i) / num_samples for sample j
    of sequence i, with u_i of low discrepancy over sequences. The standard error treats sequences as
    independent, which these times only improve on. Where sequences differ in how many tokens are given,
    it is that of the ratio of two means.

    Args:
        num_samples: Times for each sequence; an autoregressive model needs none.
        batch_size: Sequences in one forward pass. It does not change the result but for rounding.

    Raises:
        ValueError: if there is no token, a setting is out of range, or logits are not finite.
    """
    if tokens.numel() == 0:
        raise ValueError("there is nothing to measure likelihood on; pass at least one sequence of tokens")
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"num_samples is {num_samples} and batch_size {batch_size}; both must be at least 1")
    if isinstance(model, DenoiserNetwork):
        nats = _bounds(model, model.mask_token_id, tokens, schedule, num_samples, batch_size, seed)
    else:
        parts = tokens.to(model.device).split(batch_size)
        nats = torch.cat([target_scores(model, plain_ids(part), part >= 0)[0] for part in parts])
    counts = (tokens >= 0).sum(1).double().cpu()
    mean = nats.sum() / counts.sum()
    residuals = (nats - mean * counts) / counts.mean()
    error = residuals.std().item() / math.sqrt(len(tokens)) if len(tokens) > 1 else math.nan
    return Likelihood(mean.item(), error, int(counts.sum()))


def text_likelihood(
    model: TextModel, contexts: Tensor, *, num_samples: int = 1, batch_size: int = 16, seed: int = 0
) -> Likelihood:
    """Return the likelihood of `contexts` (contexts, L) of the model's tokens, and the bytes they stand for.

    Args are those of `likelihood`.

    Raises:
        ValueError: also if they are longer than the model's context.
    """
    if contexts.shape[1] > model.network.max_length:
        raise ValueError(
            f"the contexts have {contexts.shape[1]} tokens, and the model reads {model.network.max_length} "
            "at once; lower context_length"
        )
    measured = likelihood(
        model.network,
        contexts,
        schedule=SCHEDULES[model.manifest.get("schedule", "log-linear")],
        num_samples=num_samples,
        batch_size=batch_size,
        seed=seed,
    )
    return replace(measured, num_bytes=sum(len(model.decode(ids).encode()) for ids in contexts.tolist()))


def packed(
    text: Corpus | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int,
    max_contexts: int | None = None,
) -> Tensor:
    """Return documents as contexts (contexts, L), each document followed by the separator.

    What is left behind the last whole context is dropped.

    Args:
        text: A corpus, or the documents themselves.
        context_length: L.
        max_contexts: Contexts at most, spread evenly over the text; by default all.

    Raises:
        ValueError: if there is no such corpus, or it is shorter than a context.
    """
    if isinstance(text, Corpus):
        documents, text_field, name = text.documents(), text.text_field, repr(text.source)
    else:
        documents, text_field, name = Dataset.from_dict({"text": list(text)}), "text", "the text"
    if context_length < 1 or (max_contexts is not None and max_contexts < 1):
        raise ValueError(
            f"context_length is {context_length} and max_contexts {max_contexts}; both must be at least 1"
        )
    tokens = tokenized(documents, text_field, tokenizer) if len(documents) else np.empty(0, dtype=np.int64)
    if len(tokens) < context_length:
        raise ValueError(
            f"{name} has {len(tokens)} tokens, less than one context of {context_length}; "
            "give more text or a smaller context_length"
        )
    everything = len(tokens) // context_length
    return validation_batch(tokens, context_length=context_length, max_contexts=max_contexts or everything)


def target_scores(network: LanguageModel, tokens_BL: Tensor, targets_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each sequence what is known of the tokens that the mask `targets_BL` chooses.

    A denoiser predicts all of them at once from all other tokens, an autoregressive model each from the
    tokens before it. Logits are float32, and there are never N x V of them.

    Returns:
        Their -log p, summed, in nats, (B,) float64; and whether each is the likeliest of the V tokens,
        (B,) bool. Both on the CPU.

    Raises:
        ValueError: if logits are not finite.
    """
    if isinstance(network, DenoiserNetwork):
        rows_ND = network.hidden(tokens_BL.masked_fill(targets_BL, network.mask_token_id), targets_BL)
    else:
        rows_ND = network.hidden(shifted_right(tokens_BL, network.start_token_id))[targets_BL]
    chunk = max(1, CHUNK_ELEMENTS // network.vocab_size)
    nats, likeliest = [], []
    for rows, wanted in zip(rows_ND.split(chunk), tokens_BL[targets_BL].split(chunk), strict=True):
        log_p = log_probabilities(rows, network.output_head)
        nats.append(-log_p.gather(1, wanted[:, None]).squeeze(1).double())
        likeliest.append(log_p.argmax(1) == wanted)
    sequences_N = targets_BL.nonzero()[:, 0].cpu()
    empty_B = torch.zeros(len(tokens_BL), dtype=torch.float64)
    nats_B = empty_B.index_add(0, sequences_N, torch.cat(nats).cpu())
    if not nats_B.isfinite().all():
        raise ValueError(
            "the model's logits are not finite; its weights are damaged or overflow: load it again, "
            "or in float32"
        )
    misses_B = empty_B.index_add(0, sequences_N, (~torch.cat(likeliest)).double().cpu())
    return nats_B, misses_B == 0


def _bounds(
    model: LanguageModel,
    mask_token_id: int,
    tokens: Tensor,
    schedule: Schedule,
    num_samples: int,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Return the estimated bound of each sequence, in nats, (sequences,) float64."""
    generator = seeds.generator(seed)
    places = low_discrepancy_times(len(tokens), generator)
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for numbers_B in torch.arange(num_samples * len(tokens)).split(batch_size):
        samples_B, sequences_B = numbers_B // len(tokens), numbers_B % len(tokens)
        tokens_BL, times_B = tokens[sequences_B], (samples_B + places[sequences_B]) / num_samples
        corrupted_BL = corrupt(
            tokens_BL, times_B, schedule=schedule, mask_token_id=mask_token_id, generator=generator
        )
        masked_BL = (corrupted_BL == mask_token_id).to(model.device)
        nats_B, _ = target_scores(model, plain_ids(tokens_BL).to(model.device), masked_BL)
        total.index_add_(0, sequences_B, bound_weights(times_B, schedule=schedule) * nats_B)
    return total / num_samples
