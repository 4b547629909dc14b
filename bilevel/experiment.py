"""What every application shares: device, environment, results, progress.

Not part of the core: it serves the scripts in ``applications/`` and knows no problem.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bilevel import distributed
from bilevel.errors import BilevelError
from bilevel.files import make_folder, replacing, writing

Record = Mapping[str, Any]


def pick_device(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, or ``"cuda:1"`` and so on.

    Returns:
        The device; of many processes each has a GPU of its own.

    Raises:
        BilevelError: If it is not there, or not for every process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BilevelError(
            f"device {name!r} is not available ({str(error).splitlines()[0]}): give --device auto"
        ) from error
    device = torch.device(name)
    if device.type != "cuda" or distributed.world_size() == 1:
        return device
    if name != "cuda":
        raise BilevelError(
            f"device {name!r} is one GPU for {distributed.world_size()} processes: each needs one "
            "of its own; give --device cuda"
        )
    return distributed.local_gpu()


def environment(device: torch.device) -> dict[str, str]:
    """What a figure depends on beside the code: machine, versions, date, command.

    Args:
        device: The device of the run.

    Returns:
        Plain text, for ``results.json``.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": f"{device.type}: {name}",
        "threads": str(torch.get_num_threads()),
        "processes": str(distributed.world_size()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def code() -> str:
    """What is run: a checksum of the library's source, the application's and torch's version.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256(torch.__version__.encode())
    for path in [*sorted(Path(__file__).parent.rglob("*.py")), Path(sys.argv[0])]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def write_results(
    out: Path, config: Record, environment: Record, results: Sequence[Record]
) -> Path:
    """Writes ``out/results.json``, whole or not at all.

    Args:
        out: The run's folder; it is made.
        config: The arguments of the run.
        environment: See :func:`environment`.
        results: Flat records.

    Returns:
        The file.

    Raises:
        BilevelError: If it cannot be written.
    """
    content = {"config": config, "environment": environment, "results": list(results)}
    path = out / "results.json"
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2, default=str) + "\n")
    return path


class Journal:
    """The progress of one training run: a bar on the screen, curves in TensorBoard.

    Where the screen is a file, each epoch is a line instead. Of many processes, the first one's
    is written down.

    Args:
        name: What the run is called.
        folder: Where TensorBoard's files go.
    """

    def __init__(self, name: str, folder: Path) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from torch.utils.tensorboard import SummaryWriter

        self._name = name
        self._folder = folder / "tensorboard"
        self._shown: dict[str, float] = {}
        self._writer: SummaryWriter | None = None
        if distributed.is_main():
            with writing(make_folder(self._folder)):
                self._writer = SummaryWriter(self._folder)
        self._bar = Progress(
            TextColumn("{task.description:>14}"),
            BarColumn(bar_width=16),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
        )
        self._bar.disable = not self._bar.console.is_terminal
        self._task = self._bar.add_task(name, total=None, metrics="")

    def begin(self, steps: int) -> None:
        """Sets the length of the bar.

        Args:
            steps: The steps of the whole run.
        """
        self._bar.update(self._task, total=steps)

    def report(self, steps: int, metrics: dict[str, float]) -> None:
        """Moves the bar and writes the metrics down.

        Args:
            steps: Steps done so far.
            metrics: Numbers by name; the loss and what was validated are shown.

        Raises:
            BilevelError: If they cannot be written.
        """
        if self._writer is None:
            return
        for name, value in metrics.items():
            with writing(self._folder):
                self._writer.add_scalar(name, value, steps)
            if name == "loss" or name.startswith("validation_"):
                self._shown[name.removeprefix("validation_")] = value
        text = "  ".join(f"{name} {value:.3f}" for name, value in self._shown.items())
        self._bar.update(self._task, completed=steps, metrics=text)
        if self._bar.disable and "epoch" in metrics:
            print(f"{self._name}, epoch {metrics['epoch'] + 1:g}: {text}", flush=True)

    def __enter__(self) -> Journal:
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bar off and closes the files."""
        self._bar.stop()
        if self._writer is not None:
            with writing(self._folder):
                self._writer.close()


class ProgressBar:
    """How far a long computation is, with the time left; lines instead where no one looks on.

    Args:
        name: What is computed.

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
            BarColumn(bar_width=24),
            TimeRemainingColumn(),
            TextColumn("{task.fields[part]}"),
        )
        self._bar.disable = not self._bar.console.is_terminal
        self._task = self._bar.add_task(name, total=None, part="")

    def show(self, part: str, done: float, total: float) -> None:
        """Moves the bar.

        Args:
            part: What is under way.
            done: What is done.
            total: Of how much, as far as can be foreseen.
        """
        self._bar.update(self._task, completed=done, total=total, part=part)
        if self._bar.disable and part != self._part:
            print(f"{self._name}: {part}", flush=True)
        self._part = part

    def __enter__(self) -> ProgressBar:
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bar off."""
        self._bar.stop()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
