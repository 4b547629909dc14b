"""The device of a run, and a description of the machine and the code."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from bilevel import distributed
from bilevel.errors import BilevelError, first_line


def pick_device(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, or ``"cuda:1"`` and so on.

    Returns:
        The device; in a distributed job each process has its own GPU.

    Raises:
        BilevelError: If it is not available, or not for every process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BilevelError(
            f"device {name!r} is not available ({first_line(error)}): give --device auto"
        ) from error
    device = torch.device(name)
    if device.type == "cuda" and distributed.world_size() > 1:
        if name == "cuda":
            return distributed.local_gpu()
        raise BilevelError(
            f"device {name!r} is one GPU for {distributed.world_size()} processes: each needs one "
            "of its own; give --device cuda"
        )
    if device.type == "cuda" and name != "cuda":
        torch.cuda.set_device(device)  # for streams, graphs, random states and synchronisation
    return device


def environment(device: torch.device) -> dict[str, str]:
    """What results depend on besides the code: machine, versions, date, command.

    Args:
        device: The device of the run.

    Returns:
        Plain text, for ``results.json``.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": f"{device.type}: {name}",
        "threads": str(torch.get_num_threads()),
        "processes": str(distributed.world_size()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def code() -> str:
    """A checksum of the library's source, the application's source and torch's version.

    Of an application ``app.py`` the modules in ``app_lib/`` beside it are part.

    Returns:
        Hexadecimal digits.
    """
    digest, application = hashlib.sha256(torch.__version__.encode()), Path(sys.argv[0])
    modules = application.parent.glob(f"{application.stem}_lib/*.py")
    library = Path(__file__).parents[1].rglob("*.py")
    for path in [*sorted(library), application, *sorted(modules)]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
