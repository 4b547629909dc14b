"""Progress of long computations: bars in the terminal, curves in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bilevel import distributed
from bilevel.experiment.files import make_folder, writing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def unreported(*progress: object) -> None:
    """No report of progress; unlike a lambda it can be pickled."""


class ProgressBar:
    """A progress bar with the time left; lines instead if the output is not a terminal.

    Args:
        name: The name of the computation.

    Example:
        >>> with ProgressBar("pgm") as bar:
        ...     bar.show("first part", 1, 2)
        pgm: first part
    """

    def __init__(self, name: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._name = name
        self._part = ""
        self._bar = Progress(
            TextColumn("{task.description:>14}"),
            BarColumn(bar_width=16),
            TimeRemainingColumn(),
            TextColumn("{task.fields[part]}"),
        )
        self._bar.disable = not self._bar.console.is_terminal
        self._task = self._bar.add_task(name, total=None, part="")

    @property
    def visible(self) -> bool:
        """Whether there is a bar, rather than lines."""
        return not self._bar.disable

    def show(self, part: str, done: float, total: float) -> None:
        """Updates the bar.

        Args:
            part: The name of the current part.
            done: The work done.
            total: The work in total, which may be an estimate.
        """
        self._bar.update(self._task, completed=done, total=total, part=part)
        if not self.visible and part != self._part:
            print(f"{self._name}: {part}", flush=True)
        self._part = part

    def __enter__(self) -> ProgressBar:
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the bar."""
        if self.visible:
            self._bar.stop()


class Journal:
    """The progress of one training run: a bar in the terminal, curves in TensorBoard.

    If the output is not a terminal, each epoch is a line instead. From the steps of the first
    report on, the curves replace those of an earlier run in the same folder, which this one
    continues or repeats. In a distributed job the first process reports.

    Args:
        name: The name of the run.
        folder: The folder of the run; TensorBoard's files are in ``tensorboard`` there.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._bar = ProgressBar(name)
        self._folder = folder / "tensorboard"
        self._steps = 0
        self._shown: dict[str, float] = {}
        self._writer: SummaryWriter | None = None
        if distributed.is_main():
            make_folder(self._folder)

    def begin(self, steps: int, note: str = "") -> None:
        """Sets the length of the bar.

        Args:
            steps: The number of steps of the whole run.
            note: What the bar says until the first metrics arrive.
        """
        self._steps = steps
        if self._bar.visible:
            self._bar.show(note, 0, steps)

    def report(self, steps: int, metrics: dict[str, float]) -> None:
        """Updates the bar and writes the metrics.

        Args:
            steps: The number of steps done so far.
            metrics: Numbers by name; the bar shows the loss and the validation metrics.

        Raises:
            BilevelError: If they cannot be written.
        """
        if not distributed.is_main():
            return
        writer = self._write_from(steps)
        for name, value in metrics.items():
            with writing(self._folder):
                writer.add_scalar(name, value, steps)
            if name == "loss" or name.startswith("validation_"):
                self._shown[name.removeprefix("validation_")] = value
        text = "  ".join(f"{name} {value:.3f}" for name, value in self._shown.items())
        if self._bar.visible:
            self._bar.show(text, steps, self._steps)
        elif "epoch" in metrics:
            self._bar.show(f"epoch {metrics['epoch'] + 1:g}  {text}", steps, self._steps)

    def _write_from(self, steps: int) -> SummaryWriter:
        """The writer; what an earlier run wrote of these steps and later ones is not shown."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            with writing(self._folder):
                self._writer = SummaryWriter(self._folder, purge_step=steps)
        return self._writer

    def __enter__(self) -> Journal:
        """Shows the bar."""
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the bar and closes the files."""
        self._bar.__exit__()
        if self._writer is not None:
            with writing(self._folder):
                self._writer.close()
