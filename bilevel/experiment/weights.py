"""Trained networks as safetensors files: tensors and metadata, never code."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.errors import BilevelError
from bilevel.experiment.files import atomic_write
from bilevel.state import check_fits


def save_weights(path: str | os.PathLike[str], module: nn.Module, about: dict[str, str]) -> None:
    """Writes the parameters and buffers of ``module``; equal networks give equal bytes.

    Args:
        path: The file; its folder is created if missing.
        module: The network.
        about: Metadata, such as the name of the architecture.

    Raises:
        BilevelError: If it cannot be written.
    """
    from safetensors.torch import save

    tensors = {
        # Copies, since safetensors rejects tensors that share memory (tied weights).
        name: value.cpu().clone(memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }
    content = _in_order(save(tensors, metadata=about))
    with atomic_write(Path(path)) as part:
        part.write_bytes(content)


def _in_order(content: bytes) -> bytes:
    """The same file with a sorted header, since safetensors' own has another order each time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return content[:8] + text.encode().ljust(size) + content[8 + size :]


def load_weights(path: str | os.PathLike[str], module: nn.Module) -> None:
    """Loads the weights of a file into ``module``.

    Args:
        path: The file.
        module: A network of the architecture that was saved.

    Raises:
        BilevelError: If the file is missing, unreadable or of another architecture.
    """
    with _opened(path) as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    check_fits(f"network {path}", own, tensors)
    module.load_state_dict({**module.state_dict(), **tensors})


def read_about(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata that :func:`save_weights` wrote.

    Args:
        path: The file.

    Returns:
        The metadata; empty if there are none.

    Raises:
        BilevelError: If the file is missing or unreadable.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise BilevelError(
            f"cannot read weights from {path} ({error}): name what a training run wrote, a file or "
            "its folder"
        ) from error
