"""The results of a run: ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
        results: Flat records.

    Returns:
        The file.

    Raises:
        BilevelError: If it cannot be written.
    """
    content = {"config": config, "environment": environment, "results": list(results)}
    path = out / "results.json"
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2, default=_plain) + "\n", encoding="utf-8")
    return path


def _plain(value: object) -> object:
    """What JSON does not know: numbers of numpy as numbers, all else as text."""
    return value.item() if isinstance(value, np.generic) else str(value)
