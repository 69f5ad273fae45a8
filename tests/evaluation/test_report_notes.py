"""What the report says of the models comes from their manifests, and the live student is told apart."""

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from fewstep.evaluation.report_notes import ROLES, contenders, duration, method
from fewstep.evaluation.samples import Samples
from fewstep.models.config import DenoiserConfig
from fewstep.models.language_model import Denoiser
from fewstep.sampling.text_model import TextModel


def model(tokenizer: PreTrainedTokenizerBase, manifest: dict) -> TextModel:
    torch.manual_seed(0)
    config = DenoiserConfig(
        vocab_size=280, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8
    )
    return TextModel(Denoiser(config), tokenizer, manifest)


@pytest.fixture
def models(tokenizer: PreTrainedTokenizerBase) -> dict[str, TextModel]:
    def student(rounds: int, training_steps: int, tokens: int, num_steps: int) -> dict:
        return {
            "round_index": rounds - 1,
            "num_steps": num_steps,
            "tokens_seen": tokens,
            "settings": {"loop": {"training_steps": training_steps}},
        }

    manifests = (
        {"tokens_seen": 3_300_000, "settings": {"init_from": "somewhere"}},
        student(1, 45, 92_160, 8),
        student(3, 4000, 24_600_000, 4),
        {"tokens_seen": 6_000_000, "settings": {"init_from": None}},
    )
    return {role: model(tokenizer, manifest) for role, manifest in zip(ROLES, manifests, strict=True)}


def test_the_live_student_and_the_shipped_one_are_told_apart(models: dict[str, TextModel]) -> None:
    teacher, live, shipped, baseline = contenders(models, 233.4)
    assert [one.name for one in (teacher, live, shipped, baseline)] == list(ROLES)
    assert teacher.about.endswith("trained on 3.3M tokens after those of the weights it started from.")
    assert "minutes" in live.label
    assert (
        "in this demo, in 3 min 53 s of training: 1 round of 45 training steps, 92,160 tokens" in live.about
    )
    assert "Shipped" in shipped.label
    assert "same command" in shipped.about
    assert shipped.about.endswith("3 rounds of 4,000 training steps, 24.6M tokens; meant for 4 steps.")
    assert baseline.about.endswith("trained on 6.0M tokens.")


def test_rounds_before_those_of_a_run_are_told(models: dict[str, TextModel]) -> None:
    models["shipped-student"].manifest["settings"]["teacher"] = "runs/earlier/round_1"
    shipped = contenders(models, 1.0)[2]
    assert shipped.about.endswith(
        "24.6M tokens after those of its teacher, itself a student; meant for 4 steps."
    )


def test_another_student_is_not_called_the_shipped_one(models: dict[str, TextModel]) -> None:
    other = contenders(models, 1.0, "my/student")[2]
    assert "Shipped" not in other.label + other.about
    assert "Loaded from my/student" in other.about


def test_the_method_names_what_the_numbers_rest_on() -> None:
    live = {
        "teacher": "T",
        "data": {"corpus": {"source": "C"}},
        "rounds": {"base_steps": 32, "teacher_steps": 4, "divergence": "reverse_kl"},
        "loop": {"batch_size": 8, "seed": 7},
        "optimizer": {"learning_rate": 1e-4},
    }
    notes = method(Samples(num_samples=6, batch_size=2, length=99, seed=7), "smollm2", live, 9.44)
    assert "SmolLM2-135M" in notes["Judge"]
    assert notes["Texts"].startswith("6 of 99 tokens")
    assert "seed 7" in notes["Texts"]
    assert "3 batches of 2 texts" in notes["Time"]
    assert "on C: teacher T at 32 steps, 4 of them to one" in notes["Live distillation"]
    assert "rate 0.0001, seed 7" in notes["Live distillation"]
    assert torch.__version__ in notes["Versions"]
    assert f"{torch.get_num_threads()} threads" in notes["Hardware"]
    assert notes["Whole demo"] == "9.4 minutes"
    assert "another" in method(Samples(), "another", live, 1)["Judge"]


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 125)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "2 min 5 s",
    ]
