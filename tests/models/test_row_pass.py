"""Passes for chosen rows: exact without a cache, and with one exactly as stale as they may be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.models.language_model import Denoiser
from fewstep.models.row_pass import ChosenRows, DenoiserCache

MASK = 29
BATCH, LENGTH = 4, 24


def batch(seed: int = 0, masked_share: float = 0.6) -> tuple[Tensor, Tensor]:
    """Return tokens (B, L) with masks, and a mask of asked rows: some of row 0 and 3, none of 1, all of 2."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 29, (BATCH, LENGTH), generator=generator)
    tokens[torch.rand(BATCH, LENGTH, generator=generator) < masked_share] = MASK
    asked = torch.rand(BATCH, LENGTH, generator=generator) < 0.3
    asked[1], asked[2] = False, True
    return tokens, asked


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


class RowsOfProducts(TorchDispatchMode):
    """Notes how many rows each matrix product has, attention's apart."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (
            torch.ops.aten.mm,
            torch.ops.aten.addmm,
            torch.ops.mkldnn._linear_pointwise,
        ):
            self.rows.append(result.numel() // result.shape[-1])
        return result


def rows_seen(call: Callable[[], object]) -> list[int]:
    """Return the rows of each matrix product that `call` makes."""
    with RowsOfProducts() as products:
        call()
    return products.rows


@pytest.mark.parametrize("folded", [False, True])
def test_rows_of_a_full_pass_are_those_of_the_plain_one(tiny_denoiser: Denoiser, folded: bool) -> None:
    if folded:
        tiny_denoiser.folded()
    tokens, asked = batch()
    with torch.no_grad():
        close(tiny_denoiser.hidden(tokens, asked), tiny_denoiser.hidden(tokens)[asked])


def test_gradients_through_chosen_rows_are_those_of_the_plain_pass(tiny_denoiser: Denoiser) -> None:
    tokens, asked = batch()
    gradients = []
    for rows in (tiny_denoiser.hidden(tokens, asked), tiny_denoiser.hidden(tokens)[asked]):
        tiny_denoiser.zero_grad()
        rows.square().sum().backward()
        gradients.append({name: p.grad for name, p in tiny_denoiser.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_the_last_block_works_for_asked_rows_alone(tiny_denoiser: Denoiser) -> None:
    tiny_denoiser.folded()
    tokens, asked = batch()
    asked[2] = False
    num_asked = int(asked.sum())
    with torch.no_grad():
        seen = rows_seen(lambda: tiny_denoiser.hidden(tokens, asked))
    queries, others, *after_attention = seen[-5:]
    assert others == 2 * LENGTH, "keys and values of the sequences that ask"
    assert [queries, *after_attention] == [num_asked] * 4, "attention's output and both MLP layers as well"


def test_nothing_asked_costs_nothing(tiny_denoiser: Denoiser) -> None:
    tokens, asked = batch()
    seen = rows_seen(lambda: tiny_denoiser.hidden(tokens, asked & False))
    assert seen == []
    assert tiny_denoiser.hidden(tokens, asked & False).shape == (0, 16)


def test_an_empty_cache_makes_a_full_pass(tiny_denoiser: Denoiser) -> None:
    tokens, asked = batch()
    cache = tiny_denoiser.new_cache(BATCH, LENGTH)
    with torch.no_grad():
        exact = tiny_denoiser.hidden(tokens, asked)
        assert torch.equal(tiny_denoiser.hidden(tokens, asked, cache), exact)
        assert cache.positions_computed == 3 * LENGTH, "row 1 asked for nothing"
        cache.forget()
        assert torch.equal(tiny_denoiser.hidden(tokens, asked, cache), exact)


@pytest.mark.parametrize("cached", [False, True])
def test_equal_sequences_are_computed_once(tiny_denoiser: Denoiser, cached: bool) -> None:
    """All begin with masks alone; the pass after it, when they differ, finds what each has kept."""
    tokens, asked = torch.full((BATCH, LENGTH), MASK), batch()[1]
    cache = tiny_denoiser.new_cache(BATCH, LENGTH) if cached else None
    shapes: list[torch.Size] = []
    tiny_denoiser.backbone.vocab_embed.register_forward_pre_hook(
        lambda _, inputs: shapes.append(inputs[0].shape)
    )
    with torch.no_grad():
        rows = tiny_denoiser.hidden(tokens, asked, cache)
        assert shapes == [(1, LENGTH)]
        close(rows, tiny_denoiser.hidden(tokens)[asked])
        if cache is not None:
            assert cache.positions_computed == 3 * LENGTH, "counted as if each were alone"
            close(
                tiny_denoiser.hidden(tokens, asked.roll(1, 1), cache),
                tiny_denoiser.hidden(tokens)[asked.roll(1, 1)],
            )


def test_with_unchanged_tokens_kept_rows_are_as_good_as_new(tiny_denoiser: Denoiser) -> None:
    """A row depends on the tokens alone, so a cache of the same tokens gives the same rows."""
    tokens, asked = batch()
    everything = torch.ones_like(asked)
    other = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(9)) < 0.2
    cache = tiny_denoiser.new_cache(BATCH, LENGTH)
    with torch.no_grad():
        tiny_denoiser.hidden(tokens, everything, cache)
        before = cache.positions_computed
        close(tiny_denoiser.hidden(tokens, other, cache), tiny_denoiser.hidden(tokens)[other])
    assert cache.positions_computed - before == int(other.sum())


def cached_by_hand(
    model: Denoiser, held: list[tuple[Tensor, Tensor]], tokens: Tensor, computed: list[int], asked: list[int]
) -> Tensor:
    """Return the asked rows of one sequence (L,) and update `held` keys and values (L, H, K) in place."""
    backbone = model.backbone
    condition = backbone.condition()
    rotary = backbone.rotary_emb(torch.arange(len(tokens)))
    stream = backbone.vocab_embed(tokens)
    for block, (held_keys, held_values) in zip(backbone.blocks, held, strict=True):
        for_attention, for_mlp = block.modulations(condition)
        queries, keys, values = block.project(stream, rotary, for_attention)
        held_keys[computed], held_values[computed] = keys[computed], values[computed]
        scores = torch.einsum("qhk,lhk->hql", queries, held_keys) / keys.shape[-1] ** 0.5
        attended = torch.einsum("hql,lhk->qhk", scores.softmax(-1), held_values)
        after = block.finish(stream, attended, for_attention, for_mlp)
        stream = stream.clone()
        stream[computed] = after[computed]
    norm = backbone.output_layer
    return norm.norm_final(stream, norm.modulation(condition))[asked]


def test_only_changed_and_asked_rows_are_computed_against_the_old_others(tiny_denoiser: Denoiser) -> None:
    """Three passes of one sequence in a batch, against the same bookkeeping done by hand."""
    tokens, _ = batch()
    cache = tiny_denoiser.new_cache(BATCH, LENGTH)
    held = [(torch.zeros(LENGTH, 2, 8), torch.zeros(LENGTH, 2, 8)) for _ in tiny_denoiser.backbone.blocks]
    masked = (tokens[0] == MASK).nonzero().flatten().tolist()
    first, second, third = masked[:2], masked[2:5], masked[5:6]
    changed: list[int] = []
    with torch.no_grad():
        for asked_here in (first, second, third):
            computed = list(range(LENGTH)) if asked_here is first else sorted({*asked_here, *changed})
            asked = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
            asked[0, asked_here] = True
            asked[3, 7] = True
            rows = tiny_denoiser.hidden(tokens, asked, cache)
            close(
                rows[: len(asked_here)], cached_by_hand(tiny_denoiser, held, tokens[0], computed, asked_here)
            )
            tokens = tokens.clone()
            tokens[0, asked_here] = 5
            changed = asked_here
    assert cache.positions_computed == 2 * LENGTH + (3 + 2) + 1 + (1 + 3) + 1


def test_a_sequence_does_not_depend_on_its_batch(tiny_denoiser: Denoiser) -> None:
    tokens, asked = batch()
    alone = tiny_denoiser.new_cache(1, LENGTH)
    together = tiny_denoiser.new_cache(BATCH, LENGTH)
    with torch.no_grad():
        for _ in range(3):
            rows = tiny_denoiser.hidden(tokens, asked, together)
            own = rows[-int(asked[3].sum()) :]
            close(own, tiny_denoiser.hidden(tokens[3:], asked[3:], alone))
            tokens = torch.where(asked, 3, tokens)
            asked = asked.roll(1, dims=1)


def test_a_sequence_left_out_of_a_full_pass_makes_its_own_later(tiny_denoiser: Denoiser) -> None:
    tokens, asked = batch()
    cache = tiny_denoiser.new_cache(BATCH, LENGTH)
    with torch.no_grad():
        tiny_denoiser.hidden(tokens, asked, cache)
        asked = asked & False
        asked[0, 0] = asked[1, 3] = True
        close(tiny_denoiser.hidden(tokens, asked, cache), tiny_denoiser.hidden(tokens)[asked])


def test_sliding_keeps_what_stays(tiny_denoiser: Denoiser) -> None:
    """Keys turn with absolute positions, and only distances matter: what stays is as good as new."""
    tokens, _ = batch(masked_share=0.0)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    cache = tiny_denoiser.new_cache(BATCH, LENGTH)
    with torch.no_grad():
        tiny_denoiser.hidden(tokens, everything, cache)
        kept = cache.storage.clone()
        cache.slide(5)
        assert torch.equal(cache.storage[..., :-5, :], kept[..., 5:, :])
        assert torch.equal(cache.tokens_BL[:, :-5], tokens[:, 5:])
        assert (cache.tokens_BL[:, -5:] == DenoiserCache.NEVER).all()
        moved = tokens.roll(-5, dims=1)
        cache.forget()
        close(tiny_denoiser.hidden(moved, everything, cache), tiny_denoiser.hidden(moved, everything))


def test_padding_and_back() -> None:
    chosen = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    rows = torch.tensor([[1.0], [2.0], [3.0]])
    padded = ChosenRows(chosen).padded(rows)
    assert padded[..., 0].tolist() == [[1, 2], [0, 0], [3, 0]]
    assert torch.equal(ChosenRows(chosen).flat(padded), rows)
