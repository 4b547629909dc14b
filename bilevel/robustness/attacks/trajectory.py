"""The points at which an attack queries the classifier: one that is misclassified breaks its image.

An attack ascends a loss but is judged by the predicted class: the point of highest cross entropy
may be classified correctly where an earlier one was not. The code of Auto-PGD's authors keeps such
points too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.robustness.attacks.checks import check_classes
from bilevel.robustness.attacks.samples import choose
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.bounds import rounding
from bilevel.robustness.threats.losses import Targeted
from bilevel.robustness.threats.perturbation import Perturbation


class Trajectory:
    """The first misclassified point of each image among a classifier's inputs.

    Calls that do not return logits of one tensor of images are not looked at. What returns features
    may be taken for logits all the same, so that in the end each point is classified once more.

    Args:
        model: The classifier that is attacked; of a ``ScriptModule``, which takes no hooks, nothing
            is recorded.
        follower: The threat model, which adds y to the image; points outside do not count.
        batch: Clean images.

    Raises:
        BilevelError: If the labels are no classes.
    """

    def __init__(self, model: nn.Module, follower: Perturbation, batch: Batch | Targeted) -> None:
        check_classes(batch, "leave keep_broken out, which asks for misclassified images")
        self._model = model
        self._follower = follower
        self._batch: Any = batch
        self._images = batch.x
        self._broken = torch.zeros_like(batch.y, dtype=torch.bool)
        self._seen: Tensor | None = None

    def recorded(self) -> AbstractContextManager[Any]:
        """Within the block the classifier's inputs are recorded."""
        if isinstance(self._model, torch.jit.ScriptModule):
            return nullcontext()
        hooks = ExitStack()
        hooks.enter_context(self._model.register_forward_pre_hook(self._see, with_kwargs=True))
        hooks.enter_context(self._model.register_forward_hook(self._record))
        return hooks

    def _see(self, model: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        self._seen, images = None, inputs[0] if len(inputs) == 1 and not named else None
        # A solver may query a part of the batch, or in training mode: these passes do not count.
        if not isinstance(images, Tensor) or images.shape != self._batch.x.shape or model.training:
            return
        self._seen = images.detach().clone()  # the classifier may normalise them in place

    @torch.no_grad()
    def _record(self, model: nn.Module, inputs: Any, logits: object) -> None:
        images, batch = self._seen, self._batch
        if images is None or not isinstance(logits, Tensor) or logits.dim() != 2:
            return
        delta = images - batch.x
        outside = (self._follower.project(delta, batch) - delta).abs() - rounding(batch.x)
        wrong = (logits.argmax(1) != batch.y) & (outside.flatten(1).amax(1) <= 0)
        self._images = choose(wrong & ~self._broken, images, self._images)
        self._broken |= wrong

    def broken_or(self, answer: Tensor) -> Tensor:
        """For each image the first point that broke it, or the given one where none did."""
        if not self._broken.any():
            return answer
        with torch.no_grad():
            wrong = self._model(self._images.clone()).argmax(1) != self._batch.y
        return choose(self._broken & wrong, self._images, answer)
