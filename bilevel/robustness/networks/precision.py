"""The precision that networks compute in; float32 is what results are checked against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bilevel.arguments import one_of
from bilevel.errors import BilevelError, describe

Precision = Literal["float32", "tf32", "bf16"]


def default_precision(device: torch.device) -> Precision:
    """The fastest precision that a device computes in and adversarial training bears.

    Args:
        device: The device.

    Returns:
        bf16 on GPUs from Ampere on and on processors that multiply it faster (by AMX, or AMD's by
        AVX512_BF16), else float32.

    Example:
        >>> default_precision(torch.device("cpu")) in ("float32", "bf16")
        True
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    able: Any = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    # On Intel's processors bf16 without AMX is slower than float32, see docs/speed.md.
    vectors = able.get("avx512_bf16") and "Intel" not in able.get("cpu_name", "")
    return "bf16" if able.get("amx_bf16") or vectors else "float32"


@contextmanager
def computing(
    precision: Precision, device: torch.device, *, one_size: bool = False
) -> Iterator[None]:
    """Within the block the networks compute in a precision; their weights stay float32.

    Args:
        precision: ``"float32"``; ``"tf32"``, in which a GPU's matrix units round the factors to 10
            bits; or ``"bf16"``, autocast to bfloat16, in which losses stay float32.
        device: Where they compute.
        one_size: Whether all batches have one size, so that it pays to let cuDNN search for the
            fastest algorithms (unless deterministic ones are asked for).

    Yields:
        Nothing.

    Raises:
        BilevelError: If there is no such precision.

    Example:
        >>> network, x = torch.nn.Linear(2, 3), torch.rand(1, 2)
        >>> with computing("bf16", x.device):
        ...     network(x).dtype
        torch.bfloat16
    """
    one_of("precision", precision, get_args(Precision))
    cudnn, switches = torch.backends.cudnn, _tf32_switches()
    before = [getattr(backend, name) for backend, name, _ in switches]
    searched = cudnn.benchmark
    # Without the cache of converted weights: it does not notice that a player has moved, as one
    # does within a step of most schedules.
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )
    try:
        for backend, name, values in switches:
            setattr(backend, name, values[precision != "float32"])
        if one_size and not torch.are_deterministic_algorithms_enabled():
            cudnn.benchmark = True
        with autocast:
            yield
    finally:
        cudnn.benchmark = searched
        for (backend, name, _), value in zip(switches, before, strict=True):
            setattr(backend, name, value)


def _tf32_switches() -> list[tuple[Any, str, tuple[Any, Any]]]:
    """What turns TF32 off and on: object, attribute and its two values."""
    # torch 2.9 brought new switches and raises where they are mixed with the older ones, which
    # other code reads still. So the new ones are touched only where the user has set them.
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    older: list[Any] = [(part, "allow_tf32", (False, True)) for part in (matmul, cudnn)]
    try:
        for part, name, _ in older:
            getattr(part, name)
        mixed = getattr(torch.backends, "fp32_precision", "none") != "none"
    except RuntimeError:
        mixed = True
    conv, rnn = (getattr(cudnn, name, None) for name in ("conv", "rnn"))
    parts: tuple[Any, ...] = (matmul, conv, rnn) if mixed else ()
    return [(part, "fp32_precision", ("ieee", "tf32")) for part in parts] or older


def at_least_float32(values: Tensor) -> Tensor:
    """Numbers of half precision as float32, in which differences and exponentials survive.

    Args:
        values: A network's output.

    Returns:
        The same numbers.

    Raises:
        BilevelError: If it is not a tensor.
    """
    if not isinstance(values, Tensor):
        raise BilevelError(
            f"the classifier returned {describe(values)}: its output is read as logits, (B, "
            "classes); wrap it in a module that returns them"
        )
    return values.to(torch.promote_types(values.dtype, torch.float32))
