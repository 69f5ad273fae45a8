"""Model cards: what a manifest says is in the text, and what it does not say is not."""

from pathlib import Path

import yaml
from transformers import PreTrainedTokenizerBase

from fewstep.models.card import model_card, model_card_of
from fewstep.models.checkpoint import read_manifest, save_checkpoint, weights_hash
from fewstep.models.hub import SHIPPED
from fewstep.models.language_model import Denoiser


def front_matter(card: str) -> dict[str, object]:
    """Return what the hub reads of a card: the YAML between its first two rules."""
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_card_of_a_student_names_teacher_rounds_steps_and_metrics() -> None:
    card = model_card_of(SHIPPED / "sotu-student")
    manifest = read_manifest("sotu-student")
    assert front_matter(card) == {
        "library_name": "fewstep",
        "pipeline_tag": "fill-mask",
        "tags": ["fewstep", "masked-diffusion", "sdtt"],
    }
    perplexity = manifest["validation_perplexity"]
    for row in (
        "| teacher | runs/sotu_more_rounds/round_1 |",
        f"| teacher's weights | {manifest['teacher']} |",
        "| rounds done | 1 |",
        "| steps | 8 |",
        "| divergence | reverse_kl |",
        "| vocab size | 4096 |",
        f"| validation perplexity | {perplexity:.4g} |",
        f"| probe divergence | {manifest['probe_divergence']:.4g} |",
    ):
        assert row in card.splitlines(), row
    assert 'fewstep.load("sotu-student")' in card


def test_metrics_of_an_evaluation_are_rows() -> None:
    card = model_card("m", {"metrics": {"gen_ppl": 41.25, "entropy": 5}}, {"model_type": "fewstep-denoiser"})
    measured = card.split("## Measured")[1]
    assert "| gen ppl | 41.25 |" in measured and "| entropy | 5 |" in measured


def test_a_card_claims_nothing_that_is_unknown() -> None:
    card = model_card("m", {}, {"model_type": "fewstep-autoregressive"})
    assert "Measured" not in card and "Making" not in card and "None" not in card
    assert front_matter(card)["pipeline_tag"] == "text-generation"


def test_a_saved_checkpoint_has_its_card(
    tiny_denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "mine", tiny_denoiser, tokenizer, {"kind": "diffusion", "num_steps": 5})
    card = (tmp_path / "mine" / "README.md").read_text()
    assert card == model_card_of(tmp_path / "mine")
    assert "| steps | 5 |" in card and 'fewstep.load("mine")' in card
    assert read_manifest(tmp_path / "mine")["weights"] == weights_hash(tmp_path / "mine")
