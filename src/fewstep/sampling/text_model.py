"""`fewstep.load`: a model with its tokenizer, and the verbs generate and stream.

    import fewstep

    model = fewstep.load("sotu-student")
    print(model.generate(prompt="My fellow citizens,", num_steps=16).texts[0])

Denoisers and autoregressive models answer to the same verbs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fewstep import seeds
from fewstep.data.chat import questions, up_to_separator
from fewstep.data.tokenizer import load_tokenizer, vocab_size
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.losses.nelbo import DenoiserNetwork
from fewstep.models.adapters.published import Averaging
from fewstep.models.checkpoint import load_model, read_manifest
from fewstep.models.inference import Inference
from fewstep.models.language_model import LanguageModel
from fewstep.sampling.autoregressive import continue_in_steps
from fewstep.sampling.blocks import unmask_in_blocks
from fewstep.sampling.constraints import as_list, canvases, equal_length_batches, paired_constraints
from fewstep.sampling.loop import Progress, unmask_in_steps
from fewstep.sampling.samplers import SamplerName, sampler_named
from fewstep.sampling.sharpening import Sharpening

DEFAULT_STEPS = 64


@dataclass(frozen=True)
class Generation:
    """Finished texts, their token ids, and what they cost."""

    texts: list[str]
    tokens: list[list[int]]
    num_forwards: int
    """Forward passes of the slowest batch."""
    full_passes: float
    """Positions computed for a text, over its length, on average: passes over it as a whole."""


@dataclass(frozen=True)
class Snapshot:
    """One batch of texts between two steps."""

    texts: list[str]
    """Masked positions are shown as `TextModel.blank`."""
    tokens: Tensor
    """Token ids, (B, L)."""
    written: Tensor
    """Positions that this step wrote, (B, L)."""
    step: int
    num_steps: int
    num_forwards: int


class TextModel:
    """A denoiser or autoregressive model that reads and writes text.

    Args:
        network: the model; its adaLN is folded away.
        tokenizer: of the same vocabulary.
        manifest: what the checkpoint says of itself; empty if it says nothing.
    """

    blank = "░"

    def __init__(
        self,
        network: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        manifest: dict[str, Any] | None = None,
    ) -> None:
        if vocab_size(tokenizer) != network.vocab_size:
            raise ValueError(
                f"the tokenizer has {vocab_size(tokenizer)} tokens and the model {network.vocab_size}; "
                "load the tokenizer that was saved with the model"
            )
        network.folded()
        self.network = network
        self.tokenizer = tokenizer
        self.manifest = manifest or {}

    @property
    def is_denoiser(self) -> bool:
        """Whether the model unmasks; otherwise it writes from left to right."""
        return isinstance(self.network, DenoiserNetwork)

    @property
    def default_steps(self) -> int:
        """The steps that a distilled student is meant for; 64 for any other denoiser."""
        return self.manifest.get("num_steps", DEFAULT_STEPS)

    def generate(
        self,
        num_samples: int = 1,
        *,
        prompt: str | Sequence[str] = "",
        suffix: str | Sequence[str] = "",
        infill: str | Sequence[str] = "",
        length: int | None = None,
        num_steps: int | None = None,
        sampler: SamplerName | None = None,
        cache_refresh: int = 1,
        block_length: int | None = None,
        chat: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 16,
        rows: Sequence[int] | None = None,
    ) -> Generation:
        """Write texts and return them.

        Args:
            num_samples: Texts for each constraint.
            prompt: Beginning of each text; several give several texts.
            suffix: End of each text; as many as prompts, or one for all. Denoisers only.
            infill: Texts with gaps such as `<mask:8>`. Denoisers only.
            length: Tokens of each text, prompt and suffix included; by default the model's context.
            num_steps: Steps of a denoiser, each at most one forward pass.
            sampler: How a denoiser unmasks: "ancestral" by default.
            cache_refresh: Steps of a denoiser from one full pass to the next. 1 is exact. With more,
                passes between compute only the positions that unmask and those that just did, which is
                cheaper and approximate; 0 makes one full pass only.
            block_length: Tokens written at once beyond the context, for texts longer than it.
            chat: Write each prompt as a user's message, by the tokenizer's chat template; its text ends
                where the answer does, at the first separator, unless a suffix ends it.
            temperature, top_k, top_p: See `Sharpening`.
            seed: Text i depends on the seed and on i, not on the batch it is made in.
            batch_size: Texts made at once.
            rows: Numbers i of the texts to write, where not all are wanted here.

        Raises:
            ValueError: if a setting is out of range, or has no meaning for this kind of model.
        """
        starts = self._canvases(num_samples, prompt, suffix, infill, length, block_length, chat)
        wanted = range(len(starts)) if rows is None else rows
        batches = list(equal_length_batches([starts[row] for row in wanted], batch_size))
        tokens: list[list[int]] = [[] for _ in wanted]
        num_forwards = positions_computed = 0
        sharpening = Sharpening(temperature=temperature, top_k=top_k, top_p=top_p)
        unmasking = _Unmasking(num_steps, sampler, cache_refresh, block_length)
        for places in batches:
            numbers = [wanted[place] for place in places]
            batch = [starts[number] for number in numbers]
            *_, last = self._steps(batch, numbers, unmasking, sharpening, seed)
            num_forwards = max(num_forwards, last.num_forwards)
            positions_computed += last.positions_computed
            for place, ids in zip(places, last.tokens_BL.tolist(), strict=True):
                tokens[place] = ids
        full_passes = positions_computed / max(sum(map(len, tokens)), 1)
        texts = self._texts(tokens, [starts[number] for number in wanted], chat)
        return Generation(texts, tokens, num_forwards, full_passes)

    def stream(
        self,
        num_samples: int = 1,
        *,
        prompt: str | Sequence[str] = "",
        suffix: str | Sequence[str] = "",
        infill: str | Sequence[str] = "",
        length: int | None = None,
        num_steps: int | None = None,
        sampler: SamplerName | None = None,
        cache_refresh: int = 1,
        block_length: int | None = None,
        chat: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[Snapshot]:
        """Write texts and yield them after every step; the last snapshot is what `generate` returns.

        All texts are one batch, so infilled texts must be equally long. Arguments are those of
        `generate`.
        """
        starts = self._canvases(num_samples, prompt, suffix, infill, length, block_length, chat)
        if len({len(start) for start in starts}) > 1:
            raise ValueError("the texts to infill differ in length; stream them one at a time")
        sharpening = Sharpening(temperature=temperature, top_k=top_k, top_p=top_p)
        rows = list(range(len(starts)))
        before = torch.stack(starts)
        unmasking = _Unmasking(num_steps, sampler, cache_refresh, block_length)
        for progress in self._steps(starts, rows, unmasking, sharpening, seed):
            tokens = progress.tokens_BL.cpu()
            written, before = tokens != before, tokens
            texts = self._texts(tokens.tolist(), starts, chat)
            yield Snapshot(texts, tokens, written, progress.step, progress.num_steps, progress.num_forwards)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; separators vanish and masks show as `blank`."""
        mask = self.tokenizer.mask_token_id
        pieces, run = [], []
        for token in [*ids, mask]:
            if token == mask:
                pieces.append(self.tokenizer.decode(run, skip_special_tokens=True))
                run = []
            else:
                run.append(token)
        return self.blank.join(pieces)

    def _texts(self, tokens: list[list[int]], canvases: list[Tensor], chat: bool) -> list[str]:
        """Return the texts of canvases that are written or half written, of chats up to the answer's end."""
        if chat:
            mask, separator = self.tokenizer.mask_token_id, self.tokenizer.eos_token_id
            tokens = [
                up_to_separator(ids, separator, given.index(mask)) if given[-1] == mask else ids
                for ids, given in zip(tokens, (canvas.tolist() for canvas in canvases), strict=True)
            ]
        return [self.decode(ids) for ids in tokens]

    def _canvases(
        self,
        num_samples: int,
        prompt: str | Sequence[str],
        suffix: str | Sequence[str],
        infill: str | Sequence[str],
        length: int | None,
        block_length: int | None,
        chat: bool,
    ) -> list[Tensor]:
        if not self.is_denoiser and (any(as_list(suffix)) or any(as_list(infill))):
            raise ValueError("an autoregressive model continues a prompt; suffix and infill need a denoiser")
        longest = self.network.max_length
        if block_length is not None:
            self._check_blocks(block_length, length)
            longest = max(longest, length or 0)
        prompt = questions(self.tokenizer, prompt) if chat else prompt
        constraints = paired_constraints(prompt, suffix, infill)
        return canvases(constraints, self.tokenizer, num_samples, length, longest)

    def _check_blocks(self, block_length: int, length: int | None) -> None:
        context = self.network.max_length
        if length is None or length <= context:
            raise ValueError(
                f"block_length is for texts longer than the context of {context} tokens; "
                "leave it out, or raise length"
            )
        if not 1 <= block_length < context:
            raise ValueError(
                f"block_length is {block_length}; it must be at least 1 and below the context of {context}"
            )

    def _steps(
        self,
        canvases: list[Tensor],
        rows: list[int],
        unmasking: "_Unmasking",
        sharpening: Sharpening,
        seed: int,
    ) -> Iterator[Progress]:
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be 0 or more")
        generators = [seeds.generator(seed, row) for row in rows]  # on the CPU: one text on every device
        tokens_BL = torch.stack(canvases).to(self.network.device)
        if isinstance(self.network, DenoiserNetwork):
            return self._unmask(self.network, tokens_BL, unmasking, sharpening, generators)
        if unmasking != _Unmasking():
            raise ValueError(
                "num_steps, sampler, cache_refresh and block_length are a denoiser's; an autoregressive "
                "model takes one step a token"
            )
        masked_BL = tokens_BL == self.network.start_token_id  # the tokenizer's mask, too, is V
        return continue_in_steps(
            self.network,
            tokens_BL,
            prompt_lengths=(~masked_BL).sum(1).tolist(),
            generators=generators,
            sharpening=sharpening,
        )

    def _unmask(
        self,
        denoiser: DenoiserNetwork,
        tokens_BL: Tensor,
        unmasking: "_Unmasking",
        sharpening: Sharpening,
        generators: list[torch.Generator],
    ) -> Iterator[Progress]:
        unmask = unmask_in_steps
        if unmasking.block_length is not None:
            unmask = partial(
                unmask_in_blocks, context_length=self.network.max_length, block_length=unmasking.block_length
            )
        return unmask(
            denoiser,
            tokens_BL,
            num_steps=self.default_steps if unmasking.num_steps is None else unmasking.num_steps,
            sampler=sampler_named(unmasking.sampler or "ancestral"),
            schedule=SCHEDULES[self.manifest.get("schedule", "log-linear")],
            generators=generators,
            sharpening=sharpening,
            cache_refresh=unmasking.cache_refresh,
        )


@dataclass(frozen=True)
class _Unmasking:
    """The arguments of `generate` that only a denoiser takes."""

    num_steps: int | None = None
    sampler: SamplerName | None = None
    cache_refresh: int = 1
    block_length: int | None = None


def load(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    weights: Averaging | None = None,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    int8: bool = False,
    compile: Literal["none", "default", "reduce-overhead"] = "none",
) -> TextModel:
    """Return a model ready to generate: a shipped one by name, a directory, or a hub repository.

    Published MDLM and SDTT checkpoints and their Lightning files are read as they are.

    Args:
        revision: Branch, tag or commit of a hub repository; `name@revision` says the same.
        weights: Of a Lightning checkpoint, the weights as trained ("raw") or their average ("ema").
        tokenizer: A directory or hub repository with the tokenizer; by default the one saved with the
            model, or the one that its configuration names.
        device, precision, int8, compile: See `Inference`.

    Raises:
        ValueError: if there is none, it is damaged, or its tokenizer is of another vocabulary.
    """
    inference = Inference(device=device, precision=precision, int8=int8, compile=compile)
    network = load_model(name_or_path, revision=revision, weights=weights)
    source, tag = (name_or_path, revision) if tokenizer is None else (tokenizer, None)
    text_tokenizer = load_tokenizer(source, revision=tag)
    inference.prepare(network)
    return TextModel(network, text_tokenizer, read_manifest(name_or_path, revision=revision))
