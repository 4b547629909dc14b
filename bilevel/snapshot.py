"""Snapshots of the state of modules, so that a computation can be repeated as it was first run.

A backward pass that repeats part of a solve runs when the leader is back in its own mode, its
running statistics have moved on, and other random numbers have been drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states


class ModuleState:
    """A module's training flags, the ``requires_grad`` of its parameters, and its buffers.

    Within ``with state:``, which may be entered again, the module is in this state and writes into
    copies of these buffers.

    Args:
        module: The module.
        copy_buffers: Whether the buffers are copied, so that later in-place changes do not count.
    """

    def __init__(self, module: nn.Module, *, copy_buffers: bool = False) -> None:
        self.module = module
        self.flags = [(part, part.training) for part in module.modules()]
        # From the dicts of nn.Module, whose iterators and attributes cost more than a small layer.
        parameters = dict.fromkeys(p for part, _ in self.flags for p in part._parameters.values())
        self.parameters = [(p, p.requires_grad) for p in parameters if p is not None]
        self.buffers = [
            (part._buffers, name, buffer)
            for part, _ in self.flags
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        if copy_buffers:
            self.buffers = self._buffer_copies()

    def restore(self) -> None:
        """Puts the module back into this state."""
        for part, flag in self.flags:
            if part.training != flag and type(part).train is not nn.Module.train:
                part.train(flag)  # it may do more: merge weights, clear a cache
            if part.training != flag:
                part.training = flag
        for parameter, requires_grad in self.parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        for buffers, name, buffer in self.buffers:
            buffers[name] = buffer

    def use_buffer_copies(self) -> None:
        """Replaces the module's buffers by copies of these, which are then not modified."""
        for buffers, name, copy in self._buffer_copies():
            buffers[name] = copy

    def __enter__(self) -> None:
        """Puts the module into this state, with copies of the buffers."""
        self._before = ModuleState(self.module)
        self.restore()
        self.use_buffer_copies()

    def __exit__(self, *_: object) -> None:
        """Puts the module back into the state before the block."""
        self._before.restore()

    def _buffer_copies(self) -> list[tuple[dict[str, Tensor | None], str, Tensor]]:
        return [(buffers, name, buffer.clone()) for buffers, name, buffer in self.buffers]


class Snapshot:
    """The state of some modules and of the random number generators.

    Args:
        *modules: The modules.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.states = [ModuleState(module, copy_buffers=True) for module in modules]
        self.rng_state = torch.get_rng_state()
        tensors = [p for module in modules for p in module.parameters()]
        types = [t.device.type for t in tensors if t.device.type not in ("cpu", "meta")]
        self.device_type = types[0] if types else "cuda"
        self.devices, self.device_rng_states = get_device_states(*tensors)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within the block modules and random numbers are as in the snapshot; restored after it.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            for state in self.states:
                stack.enter_context(state)
            stack.enter_context(torch.random.fork_rng(self.devices, device_type=self.device_type))
            torch.set_rng_state(self.rng_state)
            set_device_states(self.devices, self.device_rng_states, device_type=self.device_type)
            yield
