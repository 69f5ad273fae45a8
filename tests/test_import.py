"""`import fewstep` costs nothing, and the transformers Auto classes know its models all the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.models.language_model import AutoregressiveLM, Denoiser

LOAD = "model = {auto}.from_pretrained({path!r}); print(type(model).__module__, type(model).__name__)"


def run_python(code: str) -> str:
    """Return what `code` prints in a fresh interpreter, without its last newline."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout.rstrip("\n")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = """if True:
        import sys, fewstep
        print(sorted({"torch", "transformers", "datasets", "numpy", "jsonargparse"} & set(sys.modules)))
    """
    assert run_python(code) == "[]"


def test_the_functions_of_the_package_come_when_they_are_asked_for() -> None:
    code = """if True:
        import fewstep
        for name in ("load", "train", "distill"):
            assert name in dir(fewstep) and name in fewstep.__all__
            function = getattr(fewstep, name)
            print(function.__module__, function.__name__)
        try:
            fewstep.trian
        except AttributeError as error:
            print(error)
    """
    assert run_python(code).splitlines() == [
        "fewstep.sampling.text_model load",
        "fewstep.training.train train",
        "fewstep.training.distill distill",
        "module 'fewstep' has no attribute 'trian'",
    ]


@pytest.mark.parametrize(
    "imports",
    [
        "import fewstep\nfrom transformers import AutoModelForMaskedLM\n",
        "from transformers import AutoModelForMaskedLM\nimport fewstep\n",
        "from fewstep.models.language_model import Denoiser\nfrom transformers import AutoModelForMaskedLM\n",
    ],
    ids=["fewstep first", "transformers first", "model first"],
)
def test_auto_model_loads_a_saved_denoiser(imports: str, tiny_denoiser: Denoiser, tmp_path: Path) -> None:
    tiny_denoiser.save_pretrained(tmp_path)
    # The sum shows that the saved weights were read, not drawn again.
    total = "print(round(sum(float(p.double().abs().sum()) for p in model.parameters()), 3))"
    printed = run_python(
        imports + LOAD.format(auto="AutoModelForMaskedLM", path=str(tmp_path)) + "\n" + total
    ).splitlines()
    assert printed[0] == "fewstep.models.language_model Denoiser"
    expected = sum(float(p.detach().double().abs().sum()) for p in tiny_denoiser.parameters())
    assert float(printed[1]) == pytest.approx(expected, abs=2e-3)


def test_auto_model_loads_a_saved_autoregressive_model(
    tiny_autoregressive: AutoregressiveLM, tmp_path: Path
) -> None:
    tiny_autoregressive.save_pretrained(tmp_path)
    code = "import fewstep\nfrom transformers import AutoModelForCausalLM\n"
    printed = run_python(code + LOAD.format(auto="AutoModelForCausalLM", path=str(tmp_path)))
    assert printed == "fewstep.models.language_model AutoregressiveLM"


@pytest.mark.parametrize("order", [("fewstep", "transformers"), ("transformers", "fewstep")])
def test_auto_config_alone_knows_the_configurations(
    order: tuple[str, str], tiny_denoiser: Denoiser, tmp_path: Path
) -> None:
    tiny_denoiser.save_pretrained(tmp_path)
    statements = {"fewstep": "import fewstep", "transformers": "from transformers import AutoConfig"}
    code = "\n".join(statements[name] for name in order)
    code += f"\nconfig = AutoConfig.from_pretrained({str(tmp_path)!r})"
    code += "\nprint(type(config).__name__, config.vocab_size)"
    assert run_python(code) == f"DenoiserConfig {tiny_denoiser.vocab_size}"


def test_auto_classes_know_the_models_after_the_tokenizers_alone() -> None:
    """What tokenizers import must not need the models, which are half imported at that time."""
    code = """if True:
        import fewstep.data.tokenizer, fewstep.models.language_model
        from transformers import AutoModelForCausalLM
        from transformers.models.auto import modeling_auto
        print(AutoModelForCausalLM is modeling_auto.AutoModelForCausalLM)
    """
    assert run_python(code) == "True"
