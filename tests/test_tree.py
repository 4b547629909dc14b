"""Values in whole: their norms and their vector, for every shape and kind of number."""

from __future__ import annotations

import pytest
import torch

from bilevel.tree import Value, as_real, norms, ravel, requiring_grad, same_structure, unravel


@pytest.mark.parametrize("scale", [1e-4, 1e3])  # their squares are no numbers of half precision
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_norms_of_all_elements_and_of_each_sample(dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    kind = torch.complex64 if dtype.is_complex else torch.float64
    y = {
        "rows": scale * torch.randn(3, 2, 4, dtype=kind, generator=generator),
        "numbers": scale * torch.randn(3, dtype=kind, generator=generator),
    }
    flat = torch.cat([leaf.reshape(3, -1) for leaf in y.values()], dim=1)
    rounded = {name: leaf.to(dtype) for name, leaf in y.items()}
    together, apart = norms(rounded, by_sample=False), norms(rounded, by_sample=True)
    rtol = 2e-2 if dtype.itemsize == 2 else 1e-5
    torch.testing.assert_close(together.double(), flat.norm().double(), rtol=rtol, atol=0)
    torch.testing.assert_close(apart.double(), flat.norm(dim=1).double(), rtol=rtol, atol=0)
    alone = {name: leaf[:1] for name, leaf in rounded.items()}
    torch.testing.assert_close(norms(alone, by_sample=True), apart[:1])


def test_a_vector_is_unravelled_into_the_types_of_its_parts() -> None:
    y = {
        "a": torch.randn(2, 3, dtype=torch.bfloat16),
        "b": torch.randn(3),  # so that the complex numbers begin at an odd place
        "c": torch.randn(2, dtype=torch.complex128),
    }
    torch.testing.assert_close(unravel(ravel(y).double(), like=y), y, rtol=0, atol=0)


def test_a_point_of_a_graph_is_not_the_tensor_that_was_given() -> None:
    given = torch.zeros(2)
    assert requiring_grad(given).requires_grad
    assert not given.requires_grad


def test_no_gradient_reaches_a_view_that_was_taken_without_a_graph() -> None:
    """It requires one nevertheless, as its base does."""
    with torch.no_grad():
        dead = torch.zeros(2, requires_grad=True).expand(3, 2)
    point, leaf = requiring_grad(dead), torch.zeros(4).view(2, 2).requires_grad_()
    assert torch.autograd.grad(point.sum(), point)[0].sum() == 6
    assert requiring_grad(leaf) is leaf


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("y", "same"),
    [
        ({"b": ONE, "a": ONE}, True),
        ({"a": ONE, "b": ONE, "c": ONE}, False),
        ({"a": ONE}, False),
        (ONE, False),
        (None, False),
    ],
)
def test_the_same_names_and_no_others_are_the_same_structure(y: Value, same: bool) -> None:
    assert same_structure(y, {"a": ONE, "b": ONE}) is same


def test_a_conjugate_is_a_pair_of_real_numbers_too() -> None:
    """Torch keeps conjugates lazily, and has no view of those."""
    assert as_real(torch.tensor([1 + 2j]).conj()).tolist() == [[1.0, -2.0]]
