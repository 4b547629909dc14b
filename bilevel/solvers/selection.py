"""Some of the samples of a batch."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from copy import copy

from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.problem import Batch


def select(batch: Batch, chosen: Tensor) -> Batch:
    """The chosen samples of a batch.

    Args:
        batch: A tensor, or a tuple, list or mapping of tensors, with a row per sample.
        chosen: A mask, ``(B,)`` bool.

    Returns:
        The chosen rows, in the same structure.

    Raises:
        BilevelError: If the batch contains something else.
    """
    if isinstance(batch, Tensor) and batch.shape[:1] == chosen.shape:
        return batch[chosen]
    if isinstance(batch, Mapping):
        rows = {name: select(part, chosen) for name, part in batch.items()}
        if not isinstance(batch, dict | UserDict):  # of others a copy may share its members
            return rows
        some = copy(batch)  # of its own kind, such as transformers.BatchEncoding
        some.update(rows)
        return some
    if isinstance(batch, tuple | list):
        parts = [select(part, chosen) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    shape = f" of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else ""
    raise BilevelError(
        f"the batch holds a {type(batch).__name__}{shape}: a solver that selects some of "
        f"{len(chosen)} samples needs a row per sample; give a tensor of that length, or a tuple, "
        "list or dict of such tensors"
    )
