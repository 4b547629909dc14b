"""Checksums of networks and tensors."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def fingerprint(*parts: nn.Module | Tensor) -> str:
    """A checksum of networks and tensors, so that what was saved is not reused for others.

    Args:
        parts: Networks and tensors, on any device.

    Returns:
        The CRC-32 of weights, buffers and tensors, eight hexadecimal digits.

    Example:
        >>> one = nn.Linear(2, 2)
        >>> before = fingerprint(one)
        >>> _ = one.bias.data.add_(1)
        >>> fingerprint(one) == before
        False
    """
    crc = 0
    for part in parts:
        named: dict[str, object] = {"": part}
        if isinstance(part, nn.Module):  # the buffers too, which need not all be in the state
            named = {**part.state_dict(), **dict(part.named_buffers())}
        for value in _tensors(named):
            plain = value.detach().cpu().resolve_conj().contiguous()
            data = plain.reshape(-1).view(torch.uint8)
            crc = zlib.crc32(data.numpy().data, crc)
    return f"{crc:08x}"


def _tensors(state: object) -> Iterator[Tensor]:
    """The tensors of a module's state, dense ones; its extra state may be anything."""
    if isinstance(state, dict):
        state = [*state.values()]
    if isinstance(state, list | tuple):  # a quantised layer keeps weight and bias in one
        for part in state:
            yield from _tensors(part)
    elif isinstance(state, Tensor) and state.is_quantized:  # its scale counts too
        yield state.dequantize()
    elif isinstance(state, Tensor) and state.layout is not torch.strided:
        entries = state.to_sparse_coo().coalesce()
        yield from (entries.indices(), entries.values())
    elif isinstance(state, Tensor):
        yield state
