"""Lightning checkpoints of the MDLM and SDTT code bases: which tensors are the weights, and the settings.

`state_dict` holds the weights as trained, with the names of the published files. `ema.shadow_params`
is a list of their moving averages in the order of the network's parameters, which is the order of
`state_dict` without its buffer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.models.adapters.weight_files import plain

FREQUENCIES = "rotary_emb.inv_freq"


def lightning_state(content: Mapping[str, Any], weights: str | None, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a Lightning checkpoint, or of a bare state dict, by name.

    Args:
        weights: "raw" for the weights as trained, "ema" for their average.

    Raises:
        ValueError: if `weights` asks for what is not there, or does not say which of two.
    """
    raw = content.get("state_dict", content)
    tensors = {name: tensor for name, tensor in raw.items() if isinstance(tensor, Tensor)}
    averages = (content.get("ema") or {}).get("shadow_params")
    if averages is None:
        if weights == "ema":
            raise ValueError(
                f"{path} holds no averaged weights (no ema.shadow_params); ask for weights='raw'"
            )
        return tensors
    if weights is None:
        raise ValueError(
            f"{path} holds weights as trained and averaged; choose weights='raw' or weights='ema'"
        )
    if weights == "raw":
        return tensors
    names = [name for name in tensors if not name.endswith(FREQUENCIES)]
    shapes = [tensors[name].shape for name in names]
    if [average.shape for average in averages] != shapes:
        raise ValueError(
            f"the {len(averages)} averages in {path} do not fit its {len(names)} weights; "
            "ask for weights='raw'"
        )
    return tensors | dict(zip(names, averages, strict=True))


def lightning_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training configuration that a Lightning checkpoint holds; empty if there is none."""
    config = plain((content.get("hyper_parameters") or {}).get("config"))
    return config if isinstance(config, dict) else {}
