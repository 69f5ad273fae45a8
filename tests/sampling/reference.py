"""Slow and obvious versions of the samplers: exact joint distributions by summing over all paths."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

State = tuple[int, ...]
Joint = dict[State, float]
VOCAB_SIZE = 3
MASK = 3
LENGTH = 3


def recorded_pass(batches: list[int], hidden_BLD: Tensor, rows: Tensor | None) -> Tensor:
    """Return what `Denoiser.hidden` does; append how many sequences take part, if any, to `batches`."""
    taking_part = len(hidden_BLD) if rows is None else int(rows.any(1).sum())
    if taking_part:
        batches.append(taking_part)
    return hidden_BLD if rows is None else hidden_BLD[rows]


class TableDenoiser(nn.Module):
    """A denoiser of 3 tokens and 3 positions whose logits are a random table over all contexts.

    Its hidden rows are its logits, so that a hidden row tells which context it was computed for.
    `batches` records the rows of every pass.
    """

    vocab_size = VOCAB_SIZE
    mask_token_id = MASK

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        contexts = (VOCAB_SIZE + 1) ** LENGTH
        self.table = 0.8 * torch.randn(contexts, LENGTH, VOCAB_SIZE, generator=generator)
        self.output_head = nn.Linear(VOCAB_SIZE, VOCAB_SIZE)
        with torch.no_grad():
            self.output_head.weight.copy_(torch.eye(VOCAB_SIZE))
            self.output_head.bias.zero_()
        self.batches: list[int] = []

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        radix = torch.tensor([(VOCAB_SIZE + 1) ** i for i in range(LENGTH)])
        return recorded_pass(self.batches, self.table[(tokens * radix).sum(1)], rows)

    def head(self, hidden_rows: Tensor) -> Tensor:
        return hidden_rows

    def probabilities(self, state: State) -> list[list[float]]:
        """Return p[position][token] in the context `state`."""
        context = sum(token * (VOCAB_SIZE + 1) ** i for i, token in enumerate(state))
        return self.table[context].double().softmax(-1).tolist()


def with_tokens(state: State, positions: tuple[int, ...], tokens: tuple[int, ...]) -> State:
    changed = list(state)
    for position, token in zip(positions, tokens, strict=True):
        changed[position] = token
    return tuple(changed)


def fillings(
    denoiser: TableDenoiser, state: State, positions: tuple[int, ...]
) -> Iterator[tuple[State, float]]:
    """Yield every way to write `positions` at once, with its probability."""
    p = denoiser.probabilities(state)
    for tokens in itertools.product(range(VOCAB_SIZE), repeat=len(positions)):
        probability = math.prod(p[position][v] for position, v in zip(positions, tokens, strict=True))
        yield with_tokens(state, positions, tokens), probability


def masked(state: State) -> tuple[int, ...]:
    return tuple(position for position, token in enumerate(state) if token == MASK)


def advance(joint: Joint, transitions: Callable[[State], Iterator[tuple[State, float]]]) -> Joint:
    """Return the distribution after one step from each state of `joint`."""
    after: Joint = {}
    for state, probability in joint.items():
        for reached, conditional in transitions(state):
            if conditional > 0:
                after[reached] = after.get(reached, 0.0) + probability * conditional
    return after


def ancestral_joint(denoiser: TableDenoiser, start: State, alphas: list[float]) -> Joint:
    """Sum over unmasking paths; `alphas` are those of the N + 1 times, from alpha(1) to alpha(0)."""
    joint: Joint = {start: 1.0}
    for alpha_t, alpha_s in itertools.pairwise(alphas):
        rho = (alpha_s - alpha_t) / (1 - alpha_t)

        def transitions(state: State, rho: float = rho) -> Iterator[tuple[State, float]]:
            free = masked(state)
            for size in range(len(free) + 1):
                weight = rho**size * (1 - rho) ** (len(free) - size)
                for positions in itertools.combinations(free, size):
                    for reached, probability in fillings(denoiser, state, positions):
                        yield reached, weight * probability

        joint = advance(joint, transitions)
    return joint


def first_hitting_joint(denoiser: TableDenoiser, start: State, counts: list[int]) -> Joint:
    """Sum over the sets of positions that steps of `counts` positions each may unmask."""
    joint: Joint = {start: 1.0}
    for count in counts:

        def transitions(state: State, count: int = count) -> Iterator[tuple[State, float]]:
            sets = list(itertools.combinations(masked(state), count))
            for positions in sets:
                for reached, probability in fillings(denoiser, state, positions):
                    yield reached, probability / len(sets)

        joint = advance(joint, transitions)
    return joint


def confidence_joint(denoiser: TableDenoiser, start: State, counts: list[int]) -> Joint:
    """Sum over the tokens drawn at all masked positions, of which the `counts` most probable stay."""
    joint: Joint = {start: 1.0}
    for count in counts:

        def transitions(state: State, count: int = count) -> Iterator[tuple[State, float]]:
            p = denoiser.probabilities(state)
            for drawn, probability in fillings(denoiser, state, masked(state)):
                surest = sorted(masked(state), key=lambda i: p[i][drawn[i]], reverse=True)[:count]
                yield with_tokens(state, tuple(surest), tuple(drawn[i] for i in surest)), probability

        joint = advance(joint, transitions)
    return joint


def chi_square_p_value(samples_BL: Tensor, joint: Joint) -> float:
    """Return the probability of a fit at least this bad if samples came from `joint`.

    Rare texts are one cell.
    """
    counts: dict[State, int] = {}
    for row in samples_BL.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    if not set(counts) <= set(joint):
        return 0.0
    cells = [(counts.get(state, 0), p * len(samples_BL)) for state, p in joint.items()]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5]
    if rare:
        cells.append((sum(count for count, _ in rare), sum(expected for _, expected in rare)))
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    degrees = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64)).item()


def tweedie_unmasking(p_V: Tensor, alpha_t: float, alpha_s: float) -> Tensor:
    """Return P(x_s | x_t = mask) over V tokens and the mask, from the score, by Tweedie's formula.

    Lou et al., 2024, theorem 4.2: (exp(-d Q) score)_y * exp(d Q)(mask, y), with d the noise between s
    and t, Q the rates of the absorbing process, and score(y) = p_t(y) / p_t(mask).
    """
    vocab = len(p_V)
    rates = torch.diag(torch.tensor([-1.0] * vocab + [0.0], dtype=torch.float64))
    rates[vocab, :vocab] = 1.0
    noise = math.log(alpha_s / alpha_t)
    score = torch.cat([alpha_t / (1 - alpha_t) * p_V.double(), torch.ones(1, dtype=torch.float64)])
    return (torch.matrix_exp(-noise * rates) @ score) * torch.matrix_exp(noise * rates)[vocab]
