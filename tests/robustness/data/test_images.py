"""Images in memory: checks of an ImageSet, and its subsets."""

from __future__ import annotations

import pytest
import torch

from bilevel.errors import BilevelError
from bilevel.robustness import ImageSet


def test_a_subset_by_positions_or_by_a_mask() -> None:
    labels = torch.tensor([2, 0, 1])
    images = ImageSet(torch.arange(3).byte().view(3, 1, 1, 1), labels, ("a", "b", "c"))
    for rows in ([0, 2], torch.tensor([0, 2]), [True, False, True], images.labels > 0):
        assert images.subset(rows).labels.tolist() == [2, 1]
    assert len(images.subset([])) == 0
    with pytest.raises(BilevelError, match=r"the mask has shape \(2,\): .* of shape \(3,\)"):
        images.subset([True, False])


def test_an_image_set_refuses_floats_and_missing_labels() -> None:
    pixels = torch.zeros(2, 1, 4, 4)
    with pytest.raises(BilevelError, match=r"images are torch.float32 of shape \(2, 1, 4, 4\)"):
        ImageSet(pixels, torch.zeros(2).long(), ("a",))
    with pytest.raises(BilevelError, match=r"give int64 of shape \(2,\)"):
        ImageSet(pixels.byte(), torch.zeros(3).long(), ("a",))
    with pytest.raises(BilevelError, match=r"labels are torch.int32 of shape \(2,\)"):
        ImageSet(pixels.byte(), torch.zeros(2).int(), ("a",))
