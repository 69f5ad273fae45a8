"""A network made ready to generate: folded, moved to its device, cast, quantized, compiled."""

import importlib.util
import logging
from dataclasses import dataclass
from typing import Literal

import torch

from fewstep.models.adapters.hugging_face import HuggingFaceDenoiser
from fewstep.models.language_model import LanguageModel
from fewstep.models.transformer import Block


@dataclass(frozen=True, kw_only=True)
class Inference:
    """Where and how a network generates; what it draws from changes only by rounding, but for int8."""

    device: str = "auto"
    """"cpu", "cuda", "cuda:1"...; "auto" is CUDA where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and matrix products; "auto" is bfloat16 on CUDA, float32 elsewhere. Logits are float32."""
    int8: bool = False
    """Keep the weights of the blocks in 8 bits (needs torchao): less memory, and slightly other text."""
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """Mode of torch.compile for the blocks: a slow first pass, then faster ones. "reduce-overhead" replays
    CUDA graphs on CUDA."""

    def __post_init__(self) -> None:
        try:
            kind = torch.device(self.torch_device).type
        except RuntimeError as error:
            raise ValueError(f"there is no device {self.device!r}; choose cpu or cuda") from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device!r}, and torch finds no CUDA here; choose cpu")
        if self.int8 and importlib.util.find_spec("torchao") is None:
            raise ValueError("int8 needs torchao, which is not installed: pip install 'fewstep[int8]'")

    @property
    def torch_device(self) -> str:
        """The device, "auto" decided."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """The precision, "auto" decided."""
        if self.precision == "auto":
            return torch.bfloat16 if self.torch_device.startswith("cuda") else torch.float32
        return getattr(torch, self.precision)

    def prepare(self, network: LanguageModel) -> None:
        """Make `network` ready, in place."""
        network.folded()  # in float32, before anything is rounded
        network.to(device=torch.device(self.torch_device), dtype=self.dtype)  # pyright: ignore
        if self.int8:
            quantize_blocks(network)
        if self.compile != "none":
            compile_blocks(network, self.compile)


def quantize_blocks(network: LanguageModel) -> None:
    """Round the weights of the blocks' linear layers to 8 bits, a scale for each output, in place.

    Embedding and head keep their precision: they decide which token is drawn.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it reports each CUDA kernel it lacks
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    is_ours = not isinstance(network, HuggingFaceDenoiser)
    quantize_(network.backbone.blocks if is_ours else network.network.base_model, Int8WeightOnlyConfig())


def compile_blocks(network: LanguageModel, mode: str) -> None:
    """Compile what a block does before and after attention, for any number of rows, in place.

    Raises:
        ValueError: if the blocks are not fewstep's own.
    """
    if isinstance(network, HuggingFaceDenoiser):
        raise ValueError(
            f"compile is {mode!r}, and the blocks of a {type(network.network).__name__} stay as they are; "
            "leave it out"
        )
    for block in network.backbone.blocks:
        assert isinstance(block, Block)
        block.project = torch.compile(block.project, dynamic=True, mode=mode)
        block.finish = torch.compile(block.finish, dynamic=True, mode=mode)
