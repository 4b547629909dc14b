"""Snapshots of the state of modules, so that a computation can be repeated as it was first run.

A backward pass that repeats part of a solve runs when the leader is back in its own mode, its
running statistics have moved on, and other random numbers have been drawn. For a block that runs
now there is :func:`~bilevel.frozen.frozen` (a mode, without weight gradients) and
:func:`~bilevel.parameters.lent` (other parameters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Buffers = dict[str, Tensor | None]

Copied = dict[int, tuple[Tensor, int, Tensor]]
"""Copies of buffers, by the buffer's id: it, its version when it was copied, and the copy."""


class ModuleState:
    """A module's training flags, its parameters with their ``requires_grad``, and its buffers.

    Within ``with state:``, which may be entered again, the module is in this state and writes into
    copies of these buffers. It has the parameters that it had, also if ``functional_call`` had lent
    them.

    Args:
        module: The module.
        copied: The copies of buffers that earlier states have made, to which this one adds: a
            buffer that has not changed since is not copied again. With it, later in-place changes
            do not count. None keeps the buffers themselves.
    """

    def __init__(self, module: nn.Module, *, copied: Copied | None = None) -> None:
        self.module = module
        self._before: list[ModuleState] = []  # one for each block that is open
        parts = list(module.modules())
        self.flags = [(part, part.training) for part in parts]
        # From the dicts of nn.Module, whose iterators and attributes cost more than a small layer.
        self.parameters = [(now, dict(now)) for part in parts if (now := part._parameters)]
        distinct = dict.fromkeys(p for _, saved in self.parameters for p in saved.values())
        self.requires_grad = [(p, p.requires_grad) for p in distinct if p is not None]
        self.buffers: list[tuple[Buffers, Buffers]] = [
            (part._buffers, dict(part._buffers)) for part in parts
        ]
        if copied is not None:
            self.buffers = [(now, _copies(saved, copied)) for now, saved in self.buffers]

    def tensors(self) -> Iterator[Tensor]:
        """The parameters and buffers.

        Yields:
            Each parameter once, then the buffers.
        """
        yield from (parameter for parameter, _ in self.requires_grad)
        for _, saved in self.buffers:
            yield from (buffer for buffer in saved.values() if buffer is not None)

    def restore(self) -> None:
        """Puts the module back into this state, also where Ctrl+C falls into that."""
        with_certainty(self._restore)

    def _restore(self) -> None:
        for part, flag in self.flags:
            if part.training != flag and type(part).train is not nn.Module.train:
                part.train(flag)  # it may do more: merge weights, clear a cache
            if part.training != flag:
                part.training = flag
        for now, saved in self.parameters:
            _put(saved, now)
        for parameter, requires_grad in self.requires_grad:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        for buffers, first in self.buffers:
            if buffers or first:
                for added in [*buffers.keys() - first.keys()]:
                    del buffers[added]  # registered by a forward pass
                _put(first, buffers)

    def use_buffer_copies(self) -> None:
        """Replaces the module's buffers by copies of these, which are then not modified."""
        copied: Copied = {}  # one for all: parts that share a buffer share its copy
        for now, saved in self.buffers:
            if saved:
                _put(_copies(saved, copied), now)

    def __enter__(self) -> None:
        """Puts the module into this state, with copies of the buffers."""
        before = ModuleState(self.module)
        try:
            self._restore()
            self.use_buffer_copies()
        except BaseException:
            before.restore()
            raise
        self._before.append(before)

    def __exit__(self, *_: object) -> None:
        """Puts the module back into the state before the block."""
        self._before.pop().restore()


def _copies(buffers: Buffers, copied: Copied) -> Buffers:
    return {n: None if one is None else _copy(one, copied) for n, one in buffers.items()}


def _copy(buffer: Tensor, copied: Copied) -> Tensor:
    if buffer.is_inference():  # torch does not count its changes
        return buffer.clone()
    known = copied.get(id(buffer))
    if known is None or known[1] != buffer._version:
        known = copied[id(buffer)] = buffer, buffer._version, buffer.clone()
    return known[2]


def _put(tensors: Mapping[str, Tensor | None], held: MutableMapping[str, Any]) -> None:
    """Makes a module hold these; the mapping of a scripted one has no ``update``."""
    for name, tensor in tensors.items():
        if name not in held or held[name] is not tensor:
            held[name] = tensor


def with_certainty(undo: Callable[[], None]) -> None:
    """Undoes a change of a module, even if Ctrl+C interrupts that: it is raised afterwards.

    A notebook goes on after Ctrl+C, and would train a leader that has stayed frozen.

    Args:
        undo: Undoes it, and may be called again.
    """
    try:
        undo()
    except BaseException:
        undo()
        raise


class Snapshot:
    """The state of some modules, of the random number generators, and of autocast.

    Args:
        *modules: The modules.
        copied: The copies of their buffers that earlier snapshots have made.
    """

    def __init__(self, *modules: nn.Module, copied: Copied | None = None) -> None:
        copied = {} if copied is None else copied
        self.states = [ModuleState(module, copied=copied) for module in modules]
        self.rng_state = torch.get_rng_state()
        places = dict.fromkeys(t.device for state in self.states for t in state.tensors())
        others = [place for place in places if place.type not in ("cpu", "meta")]
        self.device_type = others[0].type if others else "cuda"
        self.devices = [place for place in others if place.type == self.device_type]
        # Not by torch.utils.checkpoint.get_device_states, which takes what MPS lacks.
        device_module = torch.get_device_module(self.device_type)
        self.device_rng_states = [device_module.get_rng_state(place) for place in self.devices]
        # A backward pass may run outside of autocast, and on a GPU runs in another thread.
        self.autocast: dict[str, dict[str, Any]] = {
            kind: {
                "dtype": torch.get_autocast_dtype(kind),
                "enabled": torch.is_autocast_enabled(kind),
                "cache_enabled": torch.is_autocast_cache_enabled(),
            }
            for kind in {"cpu", self.device_type}
            if torch.amp.is_autocast_available(kind)
        }

    def converted_to(self, kind: str) -> torch.dtype | None:
        """The type to which autocast converted.

        Args:
            kind: The type of a device.

        Returns:
            None if it did not.
        """
        settings = self.autocast.get(kind, {"enabled": False})
        return settings["dtype"] if settings["enabled"] else None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within the block all is as in the snapshot; restored after it.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            for state in self.states:
                stack.enter_context(state)
            for kind, settings in self.autocast.items():
                stack.enter_context(torch.autocast(kind, **settings))
            stack.enter_context(torch.random.fork_rng(self.devices, device_type=self.device_type))
            torch.set_rng_state(self.rng_state)
            device_module = torch.get_device_module(self.device_type)
            for place, state in zip(self.devices, self.device_rng_states, strict=True):
                device_module.set_rng_state(state, place)
            yield
