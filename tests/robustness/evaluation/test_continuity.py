"""The probe of the margin where the answer changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bilevel.robustness import ImageSet
from bilevel.robustness.evaluation.continuity import is_continuous
from bilevel.robustness.evaluation.probed import Probed
from tests.images import image_set
from tests.robustness.evaluation.faults import Faulty


@pytest.mark.parametrize(("step", "jump", "ok"), [(0, 0, True), (0.01, 3, True), (0.1, 29, False)])
def test_by_how_much_a_margin_jumps(step: float, jump: int, ok: bool) -> None:
    """Of dark and bright images: by 4 · step, where the larger margin is 1.2 + 2 · step."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        value = x.mean((1, 2, 3)) - 0.4
        value = value + step * value.sign()
        return torch.stack([value, -value], 1)

    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(10).view(20, 1, 1, 1)
    alike = ImageSet(images.expand(-1, 1, 4, 4), torch.arange(20) % 2, ("a", "b"))
    finding = is_continuous(Probed(Faulty(nn.Identity(), forward), alike))
    assert (finding.figure, finding.ok) == (f"jumps by {jump}% of the margin", ok)


def test_a_single_answer_never_changes() -> None:
    always = Faulty(nn.Identity(), lambda _, x: torch.tensor([1.0, 0.0]).expand(len(x), 2))
    images = ImageSet(image_set(20).images, torch.arange(20) % 2, ("a", "b"))
    finding = is_continuous(Probed(always, images))
    assert (finding.figure, finding.ok) == ("not measured", False)
    assert finding.sentence.startswith("Not checked: 20 images have one answer; ")


def test_images_in_the_order_of_their_classes() -> None:
    """Of the first ones alone the answer is always the same."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        value = torch.where(x.mean((1, 2, 3)) > 0.5, 1.0, -1.0)
        return torch.stack([-value, value], 1)

    grey = torch.arange(256).byte().view(256, 1, 1, 1)
    images = ImageSet(grey, torch.arange(256) // 128, ("dark", "bright"))
    finding = is_continuous(Probed(Faulty(nn.Identity(), forward), images))
    assert (finding.figure, finding.ok) == ("jumps by 200% of the margin", False)
