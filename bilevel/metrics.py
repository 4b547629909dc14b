"""Reading the metrics of many steps without a device synchronisation at each."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.errors import NonFiniteError


class MetricLog:
    """Keeps the metrics of :meth:`Bilevel.step` as tensors, and reads them all at once.

    Example:
        >>> log = MetricLog()
        >>> for loss in (1.0, 3.0):
        ...     log.add({"loss": torch.tensor(loss)})
        >>> log.means()
        {'loss': 2.0}
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, Tensor]] = []

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Keeps the metrics of one step.

        Args:
            metrics: Scalars, on any device.
        """
        self._steps.append(metrics)

    def means(self) -> dict[str, float]:
        """Reads and forgets what was kept, in one synchronisation a metric.

        Returns:
            The mean of each metric over the steps that had it; nothing if nothing was kept.

        Raises:
            NonFiniteError: If a metric is NaN or infinite, with its name and the step.
        """
        steps, self._steps = self._steps, []
        names = dict.fromkeys(name for step in steps for name in step)
        return {name: _mean(name, [step.get(name) for step in steps]) for name in names}


def _mean(name: str, scalars: list[Tensor | None]) -> float:
    there = [number for number, scalar in enumerate(scalars, 1) if scalar is not None]
    values = torch.stack([scalar for scalar in scalars if scalar is not None]).cpu()
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        first = int(bad[0])
        raise NonFiniteError(
            f"{name} is {values[first].item()} at step {there[first]} of the last {len(scalars)}: "
            "training has diverged or the batch is not finite; lower the learning rate, or go back "
            "to the last checkpoint"
        )
    return float(values.mean())
