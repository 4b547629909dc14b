"""What every application shares: command line, device, run folder, results, error lines.

Not part of the core: it serves the scripts in ``applications/`` and knows no problem.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import torch

from bilevel.errors import BilevelError
from bilevel.files import make_folder, replacing

Arguments = TypeVar("Arguments")
Record = Mapping[str, Any]


def run(main: Callable[[Arguments], None], arguments: type[Arguments]) -> None:
    """Turns a dataclass into a command line, runs ``main`` on it and ends the process.

    Bad arguments and bad data end with exit status 2 and one line, without a traceback.

    Args:
        main: The application.
        arguments: Its arguments; their docstrings are the help.

    Raises:
        SystemExit: Always: 0, 2 for bad input, 130 if it was interrupted.
    """
    import tyro

    try:
        main(tyro.cli(arguments))
    except BilevelError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(0)


def pick_device(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, or ``"cuda:1"`` and so on.

    Returns:
        The device.

    Raises:
        BilevelError: If it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BilevelError(
            f"device {name!r} is not available ({str(error).splitlines()[0]}): give --device auto"
        ) from error
    return torch.device(name)


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
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


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
    """A progress bar on the screen and the metrics in TensorBoard, for one training run.

    Args:
        name: What the bar is called.
        folder: Where TensorBoard's files go.
    """

    def __init__(self, name: str, folder: Path) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from torch.utils.tensorboard import SummaryWriter

        self._name = name
        self._bar = Bar(
            TextColumn("{task.description:>14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
        )
        self._writer = SummaryWriter(make_folder(folder / "tensorboard"))

    def begin(self, steps: int) -> None:
        """Shows the bar.

        Args:
            steps: The length of the run.
        """
        self._task = self._bar.add_task(self._name, total=steps, metrics="")
        self._shown: dict[str, float] = {}

    def report(self, steps: int, metrics: dict[str, float]) -> None:
        """Moves the bar and writes the metrics down.

        Args:
            steps: Steps done so far.
            metrics: Numbers by name.
        """
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, steps)
        self._shown |= {k: v for k, v in metrics.items() if k == "loss" or k.startswith("valid")}
        text = "  ".join(f"{name} {value:.3f}" for name, value in self._shown.items())
        self._bar.update(self._task, completed=steps, metrics=text)

    def __enter__(self) -> Journal:
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bar off and closes the files."""
        self._bar.stop()
        self._writer.close()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
