"""The share of time outside matrix products, on work of which it is known."""

import pytest
import torch

from fewstep.benchmark.profile import is_matrix_product, time_outside_matrix_products

MATRIX = torch.ones(1024, 1024)


def test_a_matrix_product_is_nothing_else() -> None:
    assert time_outside_matrix_products(lambda: MATRIX @ MATRIX)["share_outside_matrix_products"] < 0.05


def test_other_work_is_named() -> None:
    found = time_outside_matrix_products(lambda: MATRIX.cumsum(1).tanh())
    assert found["share_outside_matrix_products"] == 1
    assert next(iter(found["largest_others"])) in ("aten::cumsum", "aten::tanh")
    assert sum(found["largest_others"].values()) == pytest.approx(1)


def test_attention_and_linear_layers_are_matrix_products() -> None:
    names = ("aten::addmm", "aten::mm", "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::gelu")
    assert [is_matrix_product(name) for name in names] == [True, True, True, False]
