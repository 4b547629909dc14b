"""The probe of what happens where a classifier changes its answer."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel import frozen
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.evaluation.probed import Probed
from bilevel.robustness.evaluation.results import Finding, finding
from bilevel.robustness.threats.losses import margin

# Of the margin at clean images. Measured: below 0.004 for networks trained with and without
# adversaries on digits, in half precision or with inputs of 8 bits too; 0.2 with inputs of 5
# levels, 0.5 with JPEG, and 1.2 to 2.1 behind a correction that is optimised at test time.
_MAX_JUMP = 0.1

_PAIRS = 64

# Then the two sides of the boundary differ by rounding.
_HALVINGS = 24


def is_continuous(probed: Probed) -> Finding:
    """Whether the margin passes through 0 where the answer changes, between images of two kinds."""
    start, end = _pairs(probed)
    jump = _jump(probed, start, end) if len(start) else 0.0
    return finding(
        "output is continuous",
        jump <= _MAX_JUMP,
        f"jumps by {jump:.0%} of the margin" if len(start) else "one answer to all images",
        "Where the answer changes, the margin passes through 0.",
        "The margin jumps where the answer changes, so that it does not tell attacks how far that "
        "is. Look for quantisation, or a correction of the input that is optimised at test time. "
        "The worst case is an upper bound: attack through the network without it, "
        "SolverAttack(…, surrogate=network), or give that network as a surrogate.",
    )


def _pairs(probed: Probed) -> tuple[Tensor, Tensor]:
    """Images, each with another one that is answered otherwise."""
    images = probed.images.images[:_PAIRS]
    answers = probed.logits[:_PAIRS].argmax(1)
    others = answers.unsqueeze(1) != answers
    paired, x = others.any(1), images / 255
    return x[paired], x[others.int().argmax(1)][paired]


def _jump(probed: Probed, start: Tensor, end: Tensor) -> float:
    """The median change of the margin across the boundary, over that at the starts."""
    answers = _logits(probed, start).argmax(1)
    batch = Batch(start, answers)
    for _ in range(_HALVINGS):
        middle = (start + end) / 2
        same = (_logits(probed, middle).argmax(1) == answers).view(-1, 1, 1, 1)
        start, end = torch.where(same, middle, start), torch.where(same, end, middle)
    margins = [margin(_logits(probed, x), batch) for x in (batch.x, start, end)]
    clean, before, after = (values.float() for values in margins)
    return ((after - before) / -clean.median()).median().item()


def _logits(probed: Probed, x: Tensor) -> Tensor:
    with torch.no_grad(), frozen(probed.model):
        parts = [probed.model(part) for part in x.split(probed.batch_size)]
    return torch.cat(parts)
