"""The probe of what happens where a classifier changes its answer."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel import frozen
from bilevel.robustness.attacks.samples import choose
from bilevel.robustness.data.batches import Batch, batches
from bilevel.robustness.data.splits import stratified_order
from bilevel.robustness.evaluation.probed import Probed
from bilevel.robustness.evaluation.results import Finding, finding, not_measured
from bilevel.robustness.threats.losses import margin

# Of the margin at clean images. Continuous networks have 0 up to rounding, also of half precision
# and of inputs to 8 bits; a layer that pushes images away from the boundary has more than 1.
_MAX_JUMP = 0.1

_ITEM = "output is continuous"

_PAIRS = 64

# Then the two sides of the boundary differ by rounding.
_HALVINGS = 24


def is_continuous(probed: Probed) -> Finding:
    """Whether the margin passes through 0 where the answer changes, between images of two kinds."""
    # Stratified: sorted images begin with many of one kind.
    rows = stratified_order(probed.images, seed=0)[:_PAIRS].sort().values
    images, logits = next(batches(probed.images.subset(rows), _PAIRS)).x, probed.logits[rows]
    answers = logits.argmax(1)
    others = answers.unsqueeze(1) != answers
    paired = others.any(1)
    if not paired.any():
        return not_measured(
            _ITEM, f"{len(rows)} images have one answer; evaluate on more images, or others"
        )
    batch = Batch(images[paired], answers[paired])
    partners = images[others.int().argmax(1)[paired]]
    clean = -margin(logits[paired], batch).float().median()
    jump = (_jumps(probed, batch, partners).median() / clean).item()
    return finding(
        _ITEM,
        jump <= _MAX_JUMP,
        f"jumps by {jump:.0%} of the margin",
        "Where the answer changes, the margin passes through 0.",
        "The margin jumps where the answer changes, so that it does not tell attacks how far that "
        "is. Look for quantisation, or a correction of the input that is optimised at test time. "
        "The worst case is an upper bound: attack through the network without it, "
        "SolverAttack(…, surrogate=network), or give that network as a surrogate.",
    )


def _jumps(probed: Probed, batch: Batch, end: Tensor) -> Tensor:
    """By how much the margin changes across the boundary between each image and its partner."""
    start = batch.x
    for _ in range(_HALVINGS):
        middle = (start + end) / 2
        same = _logits(probed, middle).argmax(1) == batch.y
        start, end = choose(same, middle, start), choose(same, end, middle)
    before, after = (margin(_logits(probed, x), batch).float() for x in (start, end))
    return after - before


def _logits(probed: Probed, x: Tensor) -> Tensor:
    with torch.no_grad(), frozen(probed.model):
        # Of a copy: the classifier may normalise it in place.
        parts = [probed.model(part) for part in x.clone().split(probed.batch_size)]
    return torch.cat(parts)
