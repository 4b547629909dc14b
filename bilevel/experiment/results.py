"""The results of a run: ``results.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bilevel.errors import BilevelError
from bilevel.experiment.files import atomic_write

Record = Mapping[str, Any]


def write_results(
    out: Path, config: Record, environment: Record, results: Sequence[Record]
) -> Path:
    """Writes ``out/results.json`` atomically.

    Args:
        out: The run's folder; it is created.
        config: The arguments of the run.
        environment: See :func:`environment`.
        results: Flat records; NaN and infinity, which JSON lacks, are written as null.

    Returns:
        The file.

    Raises:
        BilevelError: If it cannot be written.
    """
    content = _plain({"config": config, "environment": environment, "results": results})
    path = out / "results.json"
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def read_results(out: Path) -> dict[str, Any]:
    """Reads what :func:`write_results` wrote.

    Args:
        out: The run's folder, which holds a ``results.json``.

    Returns:
        ``config``, ``environment`` and ``results``.

    Raises:
        BilevelError: If it is truncated or no JSON.
    """
    path = out / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BilevelError(
            f"{path} is no readable results file ({error}): it is truncated or of another kind; "
            "delete it to measure again, or restore it from a copy"
        ) from error


def _plain(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, NaN and infinity as null, all else as text."""
    if hasattr(value, "tolist"):  # numbers of numpy, too
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
