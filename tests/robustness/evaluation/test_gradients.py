"""By how much the gradients of a classifier are off, and where it has none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bilevel.robustness import ImageSet
from bilevel.robustness.evaluation.gradients import gradients_predict, has_gradients
from bilevel.robustness.evaluation.probed import Probed
from tests.images import image_set
from tests.robustness.evaluation.faults import Faulty, linear


@pytest.mark.parametrize(
    ("factor", "off", "ok"),
    [(1, "0%", True), (0.8, "25%", True), (0.5, "100%", False), (0, "more than tenfold", False)],
)
def test_by_how_much_a_gradient_is_off(factor: float, off: str, ok: bool) -> None:
    """Of a linear classifier whose gradient is too small by a factor."""
    model = Faulty(linear(), lambda model, x: model(changed(x, lambda change: factor * change)))
    finding = gradients_predict(Probed(model, image_set(20)))
    assert (finding.figure, finding.ok) == (f"off by {off}", ok)


def unseen(first: Tensor) -> Tensor:
    """Nothing of the pixel, by a layer whose backward pass says otherwise."""
    return 6 * (first - first.detach())


def bent(first: Tensor) -> Tensor:
    """Its slope is 6 at the pixel's value and below, and 0 above."""
    return 6 * torch.where(first <= VALUE, first - VALUE, 0)


VALUE = torch.tensor(100) / 255


@pytest.mark.parametrize(("reads", "off", "ok"), [(unseen, 1.55, False), (bent, 0.29, True)])
def test_a_gradient_that_is_wrong_in_other_directions_than_its_own(
    reads: Callable[[Tensor], Tensor], off: float, ok: bool
) -> None:
    """Of 16 slopes, fifteen are 1 and one, wrong, is 6: 29 % of a sign step, and √(36 / 15)."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = x.flatten(1)
        value = x[:, 1:].sum(1) + reads(x[:, 0])
        return torch.stack([value, -value], 1)

    images = torch.full((20, 1, 4, 4), 100, dtype=torch.uint8)
    alike = ImageSet(images, torch.ones(20, dtype=torch.int64), ("a", "b"))
    finding = gradients_predict(Probed(Faulty(linear(), forward), alike))
    assert finding.ok is ok
    assert float(finding.figure.removeprefix("off by ").removesuffix("%")) / 100 == pytest.approx(
        off, rel=0.3
    )


@pytest.mark.parametrize(
    "reach", [lambda change: 1e-42 * change, torch.sqrt], ids=["underflow", "infinite"]
)
def test_a_gradient_that_cannot_be_followed(reach: Callable[[Tensor], Tensor]) -> None:
    model = Faulty(linear(), lambda model, x: model(changed(x, reach)))
    assert has_gradients(Probed(model, image_set(20))).figure == "none at 100.0% of images"


def test_gradients_are_found_where_none_are_recorded() -> None:
    probed = Probed(linear(), image_set(20))
    with torch.no_grad():
        assert has_gradients(probed).ok
        assert gradients_predict(probed).ok


def changed(x: Tensor, reach: Callable[[Tensor], Tensor]) -> Tensor:
    """The same images, with the slope at zero of ``reach`` as the factor of their gradient."""
    return x.detach() + reach(x - x.detach())
