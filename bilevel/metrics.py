"""Reads the metrics of many steps with one device synchronisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bilevel.errors import BilevelError, NonFiniteError


class MetricLog:
    """Collects the metrics of :meth:`Bilevel.step` as tensors, and averages them.

    Example:
        >>> log = MetricLog()
        >>> for loss in (1.0, 3.0):
        ...     log.add({"loss": torch.tensor(loss)})
        >>> log.means()
        {'loss': 2.0}
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, Tensor]] = []

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Adds the metrics of one step.

        Args:
            metrics: Scalars, on any device, and numbers, such as a learning rate. Of the dict a
                copy is kept, of the tensors none.

        Raises:
            BilevelError: If a metric is several numbers.
        """
        self._steps.append({name: _scalar(name, value) for name, value in metrics.items()})

    def means(self) -> dict[str, float]:
        """Averages the collected metrics and clears the log, in one synchronisation.

        Returns:
            The mean of each metric over the steps that had it; empty if there were no steps.

        Raises:
            NonFiniteError: If a metric is NaN or infinite, with its name and the step.
        """
        return self.means_later()()

    def means_later(self) -> Callable[[], dict[str, float]]:
        """Clears the log and starts an asynchronous copy of the metrics from a GPU.

        Returns:
            A function that returns what :meth:`means` would have returned, each time it is called.
            It waits until the steps have been computed.
        """
        steps, self._steps = self._steps, []
        names = dict.fromkeys(name for step in steps for name in step)
        numbers = {name: [n for n, step in enumerate(steps, 1) if name in step] for name in names}
        columns = {name: torch.stack([steps[n - 1][name] for n in numbers[name]]) for name in names}
        # A non-blocking copy from a GPU goes into pinned memory.
        copies = {name: c.to("cpu", non_blocking=c.is_cuda) for name, c in columns.items()}
        gpus = {column.device for column in columns.values() if column.is_cuda}
        copied = [torch.cuda.current_stream(gpu).record_event() for gpu in gpus]

        def read() -> dict[str, float]:
            for event in copied:
                event.synchronize()
            return {name: _mean(name, copies[name], numbers[name], len(steps)) for name in names}

        return read


def _scalar(name: str, value: Tensor | float) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    if tensor.numel() != 1:
        raise BilevelError(
            f"{name} has shape {tuple(tensor.shape)}: a metric is one number; give its mean()"
        )
    return tensor.reshape(()) if tensor.dim() else tensor


def _mean(name: str, values: Tensor, numbers: list[int], count: int) -> float:
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        first, value = int(bad[0, 0]), values[tuple(bad[0])].item()
        raise NonFiniteError(
            f"{name} is {value} at step {numbers[first]} of the last {count} "
            "read: training has diverged or the batch is not finite; lower the learning rate, or "
            "go back to the last checkpoint"
        )
    return float(values.double().mean())
