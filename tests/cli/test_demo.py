"""`fewstep demo` end to end on tiny models: its numbers, its report, reuse of the live run, refusals."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fewstep.cli.demo import demo, live_record
from fewstep.evaluation.judge import load_judge
from fewstep.models.checkpoint import read_manifest, save_checkpoint
from fewstep.models.config import AutoregressiveConfig, DenoiserConfig
from fewstep.models.language_model import AutoregressiveLM, Denoiser
from fewstep.sampling.text_model import load

SHAPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "condition_size": 8,
}


def checkpoint(directory: Path, tokenizer: PreTrainedTokenizerBase, kind: str, seed: int) -> str:
    torch.manual_seed(seed)
    if kind == "diffusion":
        model = Denoiser(DenoiserConfig(**SHAPE))
    else:
        model = AutoregressiveLM(AutoregressiveConfig(**SHAPE))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    save_checkpoint(directory, model, tokenizer, {"kind": kind, "tokens_seen": 1_500_000})
    return str(directory)


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase, corpus_file: Path
) -> dict[str, Any]:
    """A quick demo of three random models and a random judge."""
    directory = tmp_path_factory.mktemp("models")
    torch.manual_seed(9)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=281,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(directory / "judge")
    tokenizer.save_pretrained(directory / "judge")
    return {
        "quick": True,
        "teacher": checkpoint(directory / "teacher", tokenizer, "diffusion", 1),
        "student": checkpoint(directory / "student", tokenizer, "diffusion", 2),
        "autoregressive": checkpoint(directory / "baseline", tokenizer, "autoregressive", 3),
        "corpus": str(corpus_file),
        "judge": str(directory / "judge"),
        "training_steps": 3,
        "num_samples": 2,
        "seed": 5,
    }


def test_the_json_line_is_what_each_model_and_the_judge_give_alone(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo(output=str(tmp_path / "report"), **settings)
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    paths = {
        "teacher": settings["teacher"],
        "live-student": tmp_path / "report" / "live-quick" / "round_0",
        "shipped-student": settings["student"],
        "autoregressive": settings["autoregressive"],
    }
    expected = [(name, steps) for name in list(paths)[:3] for steps in (4, 16, 64)]
    assert [(row["model"], row["steps"]) for row in rows] == [*expected, ("autoregressive", None)]
    judge = load_judge(settings["judge"])
    for row in rows:
        assert {"model", "steps", "gen_ppl", "bits_per_byte", "entropy", "seconds"} <= set(row)
        made = load(paths[row["model"]]).generate(2, length=16, num_steps=row["steps"], seed=5)
        nats, num_tokens = 0.0, 0
        for text in made.texts:
            ids = judge.tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                log_p = (
                    judge.model(input_ids=torch.tensor([[judge.prefix_token_id, *ids]]))
                    .logits[0]
                    .log_softmax(-1)
                )
            nats -= sum(log_p[i, token].item() for i, token in enumerate(ids))
            num_tokens += len(ids)
        assert row["gen_ppl"] == pytest.approx(math.exp(nats / num_tokens), rel=1e-4)
        counts = [count / 16 for tokens in made.tokens for count in Counter(tokens).values()]
        assert row["entropy"] == pytest.approx(-sum(share * math.log(share) for share in counts) / 2)

    manifest = read_manifest(paths["live-student"])
    assert manifest["settings"]["loop"]["training_steps"] == 3
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "one round of 3 training steps: 24 sequences" in html
    for row in rows:
        assert f"{row['gen_ppl']:.1f}" in html


def test_a_second_demo_uses_the_finished_live_run(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, metrics = [], []
    for _ in range(2):
        demo(output=str(tmp_path), **settings)
        rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
        texts.append([(row["gen_ppl"], row["entropy"]) for row in rows])
        metrics.append((tmp_path / "live-quick" / "metrics.jsonl").read_bytes())
    assert texts[0] == texts[1]
    assert metrics[0] == metrics[1]
    with pytest.raises(ValueError, match=r"other settings.*choose another output"):
        demo(output=str(tmp_path), **{**settings, "training_steps": 4})


def test_the_live_record_reads_probe_and_time(tmp_path: Path) -> None:
    records = [
        {"round_index": 0, "training_step": 0, "probe_divergence": 0.5},
        # a demo stopped before its first saved state measures this again
        {"round_index": 0, "training_step": 0, "probe_divergence": 0.4},
        {"round_index": 0, "training_step": 2, "tokens_per_second": 64.0},
        {"round_index": 0, "training_step": 3, "tokens_per_second": 128.0},
        {"round_index": 0, "training_step": 3, "probe_divergence": 0.3},
        {"round_index": 1, "training_step": 0, "probe_divergence": 0.7},
        {"round_index": 1, "training_step": 3, "tokens_per_second": 24.0},
        {"round_index": 1, "training_step": 3, "probe_divergence": 0.6},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for index, delta in enumerate((0.25, 0.5)):
        (tmp_path / f"round_{index}").mkdir()
        (tmp_path / f"round_{index}" / "manifest.json").write_text(json.dumps({"delta": delta}))
    rounds, seconds = live_record(tmp_path, context_length=4)
    # 8 sequences of 4 tokens an update: 2 updates at 64 tokens/s, 1 at 128, 3 at 24.
    assert seconds == pytest.approx(2 * 32 / 64 + 32 / 128 + 3 * 32 / 24)
    assert [(one.delta, one.training_steps, one.divergences) for one in rounds] == [
        (0.25, (0, 3), (0.4, 0.3)),
        (0.5, (0, 3), (0.7, 0.6)),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "sotu-nothing"}, "no model 'sotu-nothing'; --teacher"),
        ({"student": "baseline"}, "is an autoregressive model; --student needs a denoiser"),
        ({"autoregressive": "teacher"}, "is a denoiser; --autoregressive needs an autoregressive model"),
        ({"num_samples": 3}, "num_samples 3"),
        ({"training_steps": 0}, "training_steps is 0"),
        ({"judge": "no/judge/here"}, "judge"),
    ],
)
def test_what_cannot_work_is_refused(
    settings: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    models = Path(settings["teacher"]).parent
    change = {
        key: str(models / value) if value in ("teacher", "baseline") else value
        for key, value in change.items()
    }
    with pytest.raises(ValueError, match=message):
        demo(output=str(tmp_path / "report"), **{**settings, **change})
    assert not (tmp_path / "report").exists()


def test_an_output_that_is_a_file_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="is a file"):
        demo(output=str(tmp_path / "file"), **settings)
    assert (tmp_path / "file").read_text() == "kept"
