"""Masked diffusion language models that generate text in a few forward passes.

    model = fewstep.load("directory, hub repository, or shipped model")
    fewstep.train(output=..., tokenizer=...)
    fewstep.distill(output=..., teacher=...)

Importing this package costs nothing: torch and transformers are imported by what needs them. Once
both are there, in either order, the transformers Auto classes know the models of this package.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from fewstep.models.hub import share
    from fewstep.sampling.text_model import load
    from fewstep.training.distill import distill
    from fewstep.training.train import train

__version__ = "0.1.0"
__all__ = ["__version__", "distill", "load", "share", "train"]

_HOME_OF = {
    "load": "fewstep.sampling.text_model",
    "train": "fewstep.training.train",
    "distill": "fewstep.training.distill",
    "share": "fewstep.models.hub",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})


@when_imported("transformers.models.auto.configuration_auto")
def _register_configurations(auto: ModuleType) -> None:
    from fewstep.models.config import AutoregressiveConfig, DenoiserConfig

    for config in (DenoiserConfig, AutoregressiveConfig):
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


@when_imported("transformers.models.auto.modeling_auto")
def _import_models(_: ModuleType) -> None:
    # Where `language_model` itself imports transformers, it is half imported here, and its own hook
    # below registers the models when it is whole.
    import_module("fewstep.models.language_model")


@when_imported("fewstep.models.language_model")
def _register_models(language_model: ModuleType) -> None:
    language_model.register()
