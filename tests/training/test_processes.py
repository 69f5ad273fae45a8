"""Two processes train and distil as one does, whole (DDP) or shared out (FSDP2), and one resumes what
two have saved and the reverse. Both processes are real and talk through gloo."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep import seeds
from fewstep.diffusion.schedule import LogLinear
from fewstep.distillation.objective import DistillationObjective
from fewstep.models.config import DenoiserConfig
from fewstep.models.language_model import Denoiser
from fewstep.training.loop import LoopConfig, TrainingLoop
from fewstep.training.optimizer import OptimizerConfig
from fewstep.training.run import averaged_weights, place_network
from tests.training.tiny_run import CONFIG, OBJECTIVE, losses, new_loop, records, state_tensors, train
from tests.training.two_processes import exit_codes, start

SHARDINGS = ("none", "full")
HALF = replace(CONFIG, training_steps=3, save_every=3, micro_batch_size=1)
WHOLE = replace(HALF, training_steps=6)
BFLOAT16 = replace(HALF, precision="bfloat16", activation_checkpointing=True)
PLAIN = OptimizerConfig(learning_rate=0.5, warmup=0, gradient_clip=0.3)


def sgd(model: Denoiser) -> torch.optim.Optimizer:
    """An optimizer that does not amplify rounding, as Adam does where gradients are tiny."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


def plainly(directory: Path, config: LoopConfig) -> TrainingLoop:
    return train(directory, config, optimizer_config=PLAIN, make_optimizer=sgd)


def distil(directory: Path, config: LoopConfig) -> TrainingLoop:
    """Three training steps of distillation from a random teacher, with two rollouts a batch."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "condition_size": 8}
    teacher = Denoiser(DenoiserConfig(vocab_size=29, max_position_embeddings=12, **shape))
    generator = seeds.generator(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    place_network(teacher.folded(), config.accelerator(directory), config)
    objective = DistillationObjective(
        teacher=teacher, delta=0.25, teacher_steps=2, teacher_rollouts=2, divergence="reverse_kl",
        schedule=LogLinear(), seed=3,
    )  # fmt: skip
    return train(directory, config, objective=objective, optimizer_config=PLAIN, make_optimizer=sgd)


def in_two_processes(rank: int, root: Path) -> None:
    for sharding in SHARDINGS:
        plainly(root / f"forth-{sharding}", replace(WHOLE, sharding=sharding))
        plainly(root / f"back-{sharding}", replace(HALF, sharding=sharding))
        distil(root / f"distil-{sharding}", replace(HALF, sharding=sharding))
    train(root / "adam", replace(HALF, sharding="full"))
    loop = train(root / "bfloat16", replace(BFLOAT16, sharding="full"))
    local = sum(p.to_local().numel() for p in loop.model.parameters())  # pyright: ignore
    every = sum(p.numel() for p in loop.model.parameters())
    assert 0.4 < local / every < 0.6
    assert sum(a.to_local().numel() for a in loop.average.average.values()) == local  # pyright: ignore
    with averaged_weights(loop.model, loop.average):
        loop.model.hidden(torch.zeros(1, 12, dtype=torch.long))
    loop.save(new_loop(root / "bfloat16", replace(BFLOAT16, sharding="full"))[1])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have made all runs, after one process made the first half of some."""
    root = tmp_path_factory.mktemp("two")
    for sharding in SHARDINGS:
        plainly(root / f"forth-{sharding}", HALF)
    assert exit_codes(start(in_two_processes, root)) == [0, 0]
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> TrainingLoop:
    """What one process makes of the same global batches."""
    return plainly(tmp_path_factory.mktemp("alone"), WHOLE)


def assert_same_state(one: TrainingLoop, other: TrainingLoop) -> None:
    for name, parameter in one.model.named_parameters():
        expected = other.model.get_parameter(name)
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            one.average.average[name], other.average.average[name], rtol=1e-4, atol=1e-6
        )


def test_some_micro_batches_ask_for_nothing(alone: TrainingLoop) -> None:
    """So that the runs below meet a process without a masked position while the other has some."""
    masked = [(OBJECTIVE.prepare(alone.loader.batch(i), i)["corrupted"] == 29).any(1) for i in range(6)]
    assert not torch.stack(masked).all()


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_processes_train_on_what_one_has_saved_as_it_would(
    sharding: str, root: Path, alone: TrainingLoop
) -> None:
    """Losses and norms of gradients of the last three training steps, and the weights they end with."""
    loop, place = new_loop(root / f"forth-{sharding}", WHOLE, make_optimizer=sgd)
    assert place.training_step == 6
    assert_same_state(loop, alone)
    for key in ("loss", "gradient_norm"):
        found, expected = (
            [row[key] for row in records(directory) if key in row]
            for directory in (root / f"forth-{sharding}", alone.run_directory)
        )
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_one_process_trains_on_what_two_have_saved_as_it_would(
    sharding: str, root: Path, alone: TrainingLoop
) -> None:
    directory = root / f"back-{sharding}"
    assert len(losses(directory)) == 3
    assert_same_state(plainly(directory, WHOLE), alone)
    assert losses(directory) == pytest.approx(losses(alone.run_directory), rel=1e-4)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_processes_distil_as_one_does(sharding: str, root: Path, tmp_path: Path) -> None:
    expected = distil(tmp_path, HALF)
    loop, _ = new_loop(root / f"distil-{sharding}", HALF, make_optimizer=sgd)
    assert_same_state(loop, expected)
    assert losses(root / f"distil-{sharding}") == pytest.approx(losses(tmp_path), rel=1e-4)
    assert min(losses(tmp_path)) > 0.01


def test_moments_that_are_shared_out_are_those_of_one_process(root: Path, tmp_path: Path) -> None:
    train(tmp_path, HALF)
    loop, _ = new_loop(root / "adam", HALF)
    expected = state_tensors(tmp_path)
    compared = 0
    for name, parameter in loop.model.named_parameters():
        for key, moment in loop.optimizer.state[parameter].items():
            target = expected[f"optimizer.{name}.{key}"]
            torch.testing.assert_close(moment, target, rtol=0, atol=2e-3 * float(target.abs().max()))
            compared += 1
    assert compared == 3 * 30


def test_bfloat16_and_recomputed_blocks_that_are_shared_out(root: Path, tmp_path: Path) -> None:
    train(tmp_path, BFLOAT16)
    assert losses(root / "bfloat16") == pytest.approx(losses(tmp_path), rel=0.01)


def test_a_pass_leaves_nothing_gathered_in_what_is_saved(root: Path) -> None:
    """The last state of that run was saved again after a pass with the averaged weights."""
    loop, place = new_loop(root / "bfloat16", BFLOAT16)
    assert place.training_step == 3
    assert all(p.isfinite().all() and p.shape for p in loop.model.parameters())


def test_sharding_needs_several_processes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loop\.sharding is full and there is one process"):
        replace(CONFIG, sharding="full").accelerator(tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ACCELERATE_USE_FSDP", "true", r"set loop\.sharding to full"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", r"set loop\.micro_batch_size"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", r"leave mixed precision to loop\.precision"),
    ],
)
def test_settings_of_the_launcher_that_would_be_ignored_are_refused(
    variable: str, value: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=says) as caught:
        CONFIG.accelerator(tmp_path)
    assert "\n" not in str(caught.value)
