"""What a generation costs, what it leaves alone, and how many positions each step unmasks."""

import pytest
import torch
from torch import Tensor

from fewstep import seeds
from fewstep.diffusion.schedule import SCHEDULES
from fewstep.models.language_model import Denoiser
from fewstep.sampling.loop import Progress, unmask_in_steps
from fewstep.sampling.samplers import sampler_named
from fewstep.sampling.sharpening import Sharpening
from tests.sampling.reference import MASK, TableDenoiser, recorded_pass

SAMPLERS = ["ancestral", "analytic", "first-hitting", "confidence"]


def run(
    denoiser: TableDenoiser | Denoiser,
    tokens_BL: Tensor,
    num_steps: int,
    sampler: str,
    *,
    schedule: str = "log-linear",
    sharpening: Sharpening = Sharpening(),
    seed: int = 0,
) -> list[Progress]:
    return list(
        unmask_in_steps(
            denoiser,
            tokens_BL,
            num_steps=num_steps,
            sampler=sampler_named(sampler),
            schedule=SCHEDULES[schedule],
            generators=seeds.sequence_generators(seed, count=len(tokens_BL)),
            sharpening=sharpening,
        )
    )


class CountingDenoiser:
    """A network of any length, with uniform predictions, which records the batch of each pass."""

    vocab_size, mask_token_id = 4, 4

    def __init__(self) -> None:
        self.batches: list[int] = []

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        return recorded_pass(self.batches, self.predictions(tokens), rows)

    def predictions(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, 4)

    def head(self, hidden_rows: Tensor) -> Tensor:
        return hidden_rows


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 5, 16])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_mistake_n_steps_cost_n_plus_one_passes(sampler: str, num_steps: int, schedule: str) -> None:
    denoiser = CountingDenoiser()
    progress = run(denoiser, torch.full((3, 40), 4), num_steps, sampler, schedule=schedule)
    assert [p.step for p in progress] == list(range(1, num_steps + 1))
    assert len(denoiser.batches) == progress[-1].num_forwards <= num_steps
    assert (progress[-1].tokens_BL < 4).all(), "no mask is left after the last step"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_in_which_nothing_unmasks_costs_no_pass(sampler: str) -> None:
    denoiser = TableDenoiser()
    progress = run(denoiser, torch.full((1, 3), MASK), 50, sampler)
    changes = 0
    before = torch.full((1, 3), MASK)
    for p in progress:
        changes += not torch.equal(before, p.tokens_BL)
        assert p.num_forwards == changes
        before = p.tokens_BL
    assert len(denoiser.batches) == changes <= 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_with_nothing_to_do_are_left_out_of_the_pass(sampler: str) -> None:
    """Rows of 40, 1 and no masks: the second is in one pass, the third in none."""
    denoiser = CountingDenoiser()
    tokens_BL = torch.zeros(3, 40, dtype=torch.long)
    tokens_BL[0] = 4
    tokens_BL[1, 7] = 4
    progress = run(denoiser, tokens_BL, 8, sampler)
    expected = []
    before = tokens_BL
    for p in progress:
        expected.append(int((before != p.tokens_BL).any(1).sum()))
        before = p.tokens_BL
    assert denoiser.batches == [rows for rows in expected if rows]
    assert sum(denoiser.batches) == 8 + 1
    assert max(denoiser.batches) == 2


def test_text_without_a_mask_costs_nothing() -> None:
    denoiser = CountingDenoiser()
    progress = run(denoiser, torch.zeros(2, 5, dtype=torch.long), 3, "ancestral")
    assert denoiser.batches == []
    assert progress[-1].num_forwards == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_positions_never_change(tiny_denoiser: Denoiser, sampler: str) -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(0, 29, (6, 20), generator=generator)
    masked = torch.rand(6, 20, generator=generator) < 0.5
    tokens_BL = given.masked_fill(masked, tiny_denoiser.mask_token_id)
    untouched = tokens_BL.clone()
    for p in run(tiny_denoiser, tokens_BL, 6, sampler):
        assert torch.equal(p.tokens_BL[~masked], given[~masked])
    assert torch.equal(tokens_BL, untouched), "the caller's batch is not written to"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_written_token_stays(tiny_denoiser: Denoiser, sampler: str) -> None:
    before = torch.full((4, 20), tiny_denoiser.mask_token_id)
    for p in run(tiny_denoiser, before, 7, sampler):
        clean = before != tiny_denoiser.mask_token_id
        assert torch.equal(p.tokens_BL[clean], before[clean])
        before = p.tokens_BL


@pytest.mark.parametrize("sampler", ["first-hitting", "confidence"])
@pytest.mark.parametrize(
    ("masks", "num_steps", "schedule", "counts"),
    [
        (12, 4, "log-linear", [3, 3, 3, 3]),
        (10, 4, "log-linear", [2, 3, 2, 3]),  # 10, 7.5, 5, 2.5, 0 rounded up to 10, 8, 5, 3, 0
        (3, 6, "log-linear", [0, 1, 0, 1, 0, 1]),  # 3, 2.5, 2, 1.5, 1, 0.5, 0 to 3, 3, 2, 2, 1, 1, 0
        (12, 3, "cosine", [6, 4, 2]),  # alpha = sin(30), sin(60), sin(90) degrees: 12, 6, 1.6, 0
    ],
)
def test_numbers_of_positions_of_each_step(
    sampler: str, masks: int, num_steps: int, schedule: str, counts: list[int]
) -> None:
    start = torch.full((2, masks), 4)
    progress = run(CountingDenoiser(), start, num_steps, sampler, schedule=schedule)
    left = torch.stack([(p.tokens_BL == 4).sum(1) for p in progress])
    unmasked = -left.diff(dim=0, prepend=torch.full((1, 2), masks))
    assert unmasked.T.tolist() == [counts, counts]


def test_ancestral_unmasks_a_binomial_number() -> None:
    """Half of the positions in the first of two steps, give or take."""
    first, _ = run(CountingDenoiser(), torch.full((400, 100), 4), 2, "ancestral")
    left = (first.tokens_BL == 4).sum(1).double()
    assert left.mean().item() == pytest.approx(50, abs=4 * 5 / 20)
    assert left.var().item() == pytest.approx(25, rel=0.3)


def test_first_hitting_takes_every_position_equally_often() -> None:
    first, *_ = run(CountingDenoiser(), torch.full((3000, 6), 4), 3, "first-hitting")
    assert (first.tokens_BL != 4).double().mean(0).tolist() == pytest.approx([1 / 3] * 6, abs=0.035)


def test_mistake_confidence_in_the_sharpened_distribution() -> None:
    """At temperature 0 every drawn token has probability 1; what counts is the network's own."""

    class Graded(CountingDenoiser):
        def predictions(self, tokens: Tensor) -> Tensor:
            rows = super().predictions(tokens)
            rows[..., 2] = torch.tensor([1.0, 4.0, 2.0, 3.0, 0.5])
            return rows

    progress = run(Graded(), torch.full((1, 5), 4), 5, "confidence", sharpening=Sharpening(temperature=0))
    order = []
    before = torch.full((1, 5), 4)
    for p in progress:
        order += (before != p.tokens_BL)[0].nonzero().flatten().tolist()
        before = p.tokens_BL
    assert order == [1, 3, 2, 0, 4]
    assert before.tolist() == [[2] * 5]


@pytest.mark.parametrize("num_steps", [0, -3])
def test_fewer_than_one_step_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}; generation takes at least 1 step"):
        run(CountingDenoiser(), torch.full((1, 5), 4), num_steps, "ancestral")


def test_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no sampler 'ddim'; choose one of ancestral, analytic"):
        sampler_named("ddim")
