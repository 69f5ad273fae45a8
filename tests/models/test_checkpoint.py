"""Checkpoints: what is saved comes back, what is damaged is refused in one line, nothing is lost."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, PreTrainedTokenizerBase

from fewstep.data.tokenizer import load_tokenizer
from fewstep.models.checkpoint import (
    load_model,
    read_manifest,
    recover,
    replacing,
    save_checkpoint,
    weights_hash,
)
from fewstep.models.language_model import AutoregressiveLM, Denoiser

HEAD = "backbone.output_layer.linear.bias"


@pytest.fixture
def checkpoint(tiny_denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", tiny_denoiser, tokenizer, {"kind": "diffusion", "rounds": [1, 2]})
    return tmp_path / "model"


def refusal(path: Path | str) -> str:
    """Return the message with which `path` is refused."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        load_model(path)
    message = str(caught.value)
    assert len(message) < 500
    assert str(path) in message
    return message


def test_everything_comes_back(checkpoint: Path, tiny_denoiser: Denoiser) -> None:
    loaded = load_model(checkpoint)
    assert type(loaded) is Denoiser
    for name, tensor in tiny_denoiser.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    manifest = read_manifest(checkpoint)
    assert manifest == {"kind": "diffusion", "rounds": [1, 2], "weights": weights_hash(checkpoint)}
    assert load_tokenizer(checkpoint).mask_token == "<|mask|>"


@torch.no_grad()
def test_loaded_model_computes_the_same_bits(checkpoint: Path, tiny_denoiser: Denoiser) -> None:
    """Weights that lie at other addresses modulo 64 bytes can be multiplied in another order.

    A resumed distillation loads the teacher that the uninterrupted one has in memory.
    """
    tokens = torch.randint(0, 30, (4, 20), generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_model(checkpoint)(tokens).logits, tiny_denoiser(tokens).logits)


def test_autoregressive_kind_is_recognized(tiny_autoregressive: AutoregressiveLM, tmp_path: Path) -> None:
    tiny_autoregressive.save_pretrained(tmp_path)
    assert type(load_model(tmp_path)) is AutoregressiveLM
    assert read_manifest(tmp_path) == {}


def test_half_precision_is_loaded_in_float32(tiny_denoiser: Denoiser, tmp_path: Path) -> None:
    halved = {name: tensor.bfloat16() for name, tensor in tiny_denoiser.state_dict().items()}
    tiny_denoiser.bfloat16().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert all(torch.equal(loaded.state_dict()[name], halved[name].float()) for name in halved)


def test_state_dict_is_saved_in_place_of_the_model(
    tiny_denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    average = {name: parameter.detach() * 0.5 for name, parameter in tiny_denoiser.named_parameters()}
    save_checkpoint(tmp_path / "model", tiny_denoiser, tokenizer, {}, state_dict=average)
    loaded = dict(load_model(tmp_path / "model").named_parameters())
    assert all(torch.equal(loaded[name], average[name]) for name in average)


def test_hash_is_of_the_weights(checkpoint: Path) -> None:
    before = weights_hash(checkpoint)
    (checkpoint / "manifest.json").write_text("{}")
    assert weights_hash(checkpoint) == before
    weights = load_file(checkpoint / "model.safetensors")
    weights[HEAD][0] += 1e-3
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert weights_hash(checkpoint) != before


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    assert "name a checkpoint directory" in refusal(tmp_path / "nowhere")


def test_unknown_name_is_refused_without_a_network() -> None:
    assert "name a checkpoint directory" in refusal("no-such-model-of-ours")


def test_directory_without_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    refusal(checkpoint)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights_are_refused(checkpoint: Path, share: float) -> None:
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refusal(checkpoint)


def damage(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


def test_missing_tensor_is_refused(checkpoint: Path) -> None:
    damage(checkpoint, lambda weights: weights.pop(HEAD))
    assert HEAD in refusal(checkpoint)


def test_tensor_of_another_shape_is_refused(checkpoint: Path) -> None:
    damage(checkpoint, lambda weights: weights.update({HEAD: torch.zeros(28)}))
    refusal(checkpoint)


def test_tensor_too_many_is_refused(checkpoint: Path) -> None:
    damage(checkpoint, lambda weights: weights.update({"backbone.stray": torch.zeros(3)}))
    assert "backbone.stray" in refusal(checkpoint)


def test_weights_of_another_depth_are_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "backbone.blocks.2" in refusal(checkpoint)


def test_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    assert "gpt2" in refusal(tmp_path)


def test_broken_configuration_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"model_type": "fewstep-den')
    refusal(checkpoint)


def test_configuration_of_no_known_type_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"model_type": "no-such-type"}')
    refusal(checkpoint)


def test_replacing_puts_the_new_in_place_of_the_old(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    for content in ("first", "second"):
        with replacing(target) as unfinished:
            (unfinished / content).write_text(content)
        assert [path.name for path in target.iterdir()] == [content]
        assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_replacing_keeps_the_old_if_the_block_raises(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "target"
    with replacing(target) as unfinished:
        (unfinished / "file").write_text("old")
    with pytest.raises(type(error)), replacing(target) as unfinished:  # noqa: PT012
        (unfinished / "file").write_text("new")
        raise error
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_replacing_clears_what_a_kill_left(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "target.unfinished").mkdir()
    (tmp_path / "target.unfinished" / "stray").write_text("half")
    with replacing(target) as unfinished:
        (unfinished / "file").write_text("whole")
    assert [path.name for path in target.iterdir()] == ["file"]


def test_recover_puts_back_what_a_kill_moved_away(tmp_path: Path) -> None:
    target, previous = tmp_path / "target", tmp_path / "target.previous"
    previous.mkdir()
    (previous / "file").write_text("old")
    recover(target)
    assert (target / "file").read_text() == "old" and not previous.exists()
    previous.mkdir()
    recover(target)  # the new one is in place: the old one stays away
    assert (target / "file").read_text() == "old"


def test_saving_after_such_a_kill_never_deletes_the_only_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is missing and its predecessor is beside it: the next save must not start with that."""
    target, previous = tmp_path / "target", tmp_path / "target.previous"
    previous.mkdir()
    (previous / "file").write_text("old")

    def killed(self: Path, name: Path) -> Path:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replacing(target) as unfinished:  # noqa: PT012
        (unfinished / "file").write_text("new")
        monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.undo()
    recover(target)
    assert (target / "file").read_text() in ("old", "new")
