"""The losses of attacks: signs, invariances, and the formulas of Croce & Hein written out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bilevel import BilevelError
from bilevel.robustness import Batch
from bilevel.robustness.threats.losses import (
    OF_CLASSES,
    TARGETED,
    UNTARGETED,
    Loss,
    Targeted,
    cross_entropy,
    dlr,
    margin,
    targeted_cross_entropy,
    targeted_dlr,
)

seeds = st.integers(0, 2**31)


def drawn(seed: int, classes: int = 6, count: int = 20) -> tuple[torch.Tensor, Targeted]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (count,), generator=generator)
    shift = torch.randint(1, classes, (count,), generator=generator)
    return logits, Targeted(torch.zeros(count, 1, 1, 1), y, (y + shift) % classes)


@given(seeds)
def test_margin_and_dlr_are_positive_exactly_where_the_answer_is_wrong(seed: int) -> None:
    logits, batch = drawn(seed)
    wrong = logits.argmax(1) != batch.y
    for loss in (margin, dlr):
        assert torch.equal(loss(logits, batch) > 0, wrong)


@given(seeds, st.floats(0.1, 100), st.floats(-50, 50))
def test_the_ratios_do_not_see_the_logits_scale_or_shift(
    seed: int, scale: float, shift: float
) -> None:
    logits, batch = drawn(seed)
    for loss in (dlr, targeted_dlr):
        torch.testing.assert_close(loss(scale * logits + shift, batch), loss(logits, batch))


@given(seeds)
def test_the_ratios_are_the_papers(seed: int) -> None:
    logits, batch = drawn(seed)
    rows = zip(logits.tolist(), batch.y.tolist(), batch.target.tolist(), strict=True)
    expected, toward = [], []
    for z, y, t in rows:
        first = sorted(z, reverse=True)
        other = max(value for k, value in enumerate(z) if k != y)
        expected.append(-(z[y] - other) / (first[0] - first[2]))
        toward.append(-(z[y] - z[t]) / (first[0] - (first[2] + first[3]) / 2))
    torch.testing.assert_close(dlr(logits, batch), torch.tensor(expected, dtype=torch.float64))
    actual = targeted_dlr(logits, batch)
    torch.testing.assert_close(actual, torch.tensor(toward, dtype=torch.float64))


def test_cross_entropy_keeps_one_value_a_sample() -> None:
    logits, batch = drawn(0)
    expected = F.nll_loss(logits.log_softmax(1), batch.y, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, batch), expected)


def test_a_batch_of_ones_own_may_have_targets() -> None:
    logits, batch = drawn(0)
    own = SimpleNamespace(**batch._asdict(), mask=torch.ones(20))
    assert torch.equal(targeted_dlr(logits, own), targeted_dlr(logits, batch))


@pytest.mark.parametrize("loss", [*UNTARGETED.values(), targeted_dlr])
def test_equal_logits_give_finite_slopes_away_from_the_true_class(loss) -> None:
    _, batch = drawn(0, count=4)
    logits = torch.zeros(4, 6, requires_grad=True)
    loss(logits, batch).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[torch.arange(4), batch.y] < 0).all()


def test_too_few_classes_for_a_ratio_are_told() -> None:
    logits, batch = drawn(0, classes=3)
    with pytest.raises(BilevelError, match=r"3 classes.*needs 4: attack it with the margin"):
        targeted_dlr(logits, batch)
    assert dlr(logits, batch).isfinite().all()  # 3 are enough
    logits, batch = drawn(0, classes=4)
    assert targeted_dlr(logits, batch).isfinite().all()
    logits, batch = drawn(0, classes=2)
    with pytest.raises(BilevelError, match=r"2 classes.*needs 3"):
        dlr(logits, batch)


def test_a_targeted_loss_wants_targets() -> None:
    logits, batch = drawn(0)
    with pytest.raises(BilevelError, match="give Targeted"):
        targeted_dlr(logits, Batch(batch.x, batch.y))


@given(seeds)
def test_the_targeted_cross_entropy_is_torchs_negated(seed: int) -> None:
    logits, batch = drawn(seed)
    expected = -F.cross_entropy(logits, batch.target, reduction="none")
    torch.testing.assert_close(targeted_cross_entropy(logits, batch), expected)


@pytest.mark.parametrize("loss", OF_CLASSES)
def test_a_single_logit_is_refused(loss: Loss) -> None:
    """Its cross entropy is 0 at all images, so that an attack would silently do nothing."""
    batch = Targeted(torch.rand(4, 1, 1, 1), *torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(BilevelError, match=r"has one logit: .* torch.cat\(\[0 \* z, z\], 1\)"):
        loss(torch.rand(4, 1), batch)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    logits, batch = drawn(0)
    assert torch.equal(compiled(logits, batch), loss(logits, batch))


@pytest.mark.parametrize("loss", TARGETED)
@pytest.mark.parametrize(
    ("target", "told"),
    [
        (torch.tensor([2]), r"torch.int64 of shape \(1,\): .* torch.full_like\(y, 2\)"),
        (torch.tensor(2), r"torch.int64 of shape \(\)"),
        (torch.zeros(20, 1).long(), r"torch.int64 of shape \(20, 1\)"),
        (torch.zeros(21).long(), r"give int64 of shape \(20,\)"),
        (torch.zeros(20), "torch.float32"),
        (2, "targets are an int"),
        (torch.full((20,), 6), "the classifier has 6 of them, numbered from 0"),
        (torch.full((20,), -1), "a target is no class: .* give targets among these"),
    ],
)
def test_targets_that_are_not_a_class_for_each_image(loss: Loss, target: object, told: str) -> None:
    """Of a single one all images would get the logit of the first."""
    logits, batch = drawn(0)
    with pytest.raises(BilevelError, match=told):
        loss(logits, batch._replace(target=target))
