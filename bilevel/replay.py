"""How modules compute at one moment, so that something can be computed again as it was then.

A backward pass that runs a part of the solve again comes when the leader is back in its own mode,
its running statistics have moved on and other random numbers have been drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states


class Condition:
    """How a module computes: its training flags, what is trained, and its buffers.

    Args:
        module: The module.
        lasting: Whether the buffers are copied, so that nothing written into them later counts.
    """

    def __init__(self, module: nn.Module, *, lasting: bool = False) -> None:
        self.module = module
        self.flags = [(part, part.training) for part in module.modules()]
        self.parameters = [(p, p.requires_grad) for p in module.parameters()]
        # Read and written past nn.Module, whose attributes cost more than small networks' layers.
        self.buffers = [
            (part._buffers, name, buffer)
            for part, _ in self.flags
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        if lasting:
            self.buffers = self._copies()

    def restore(self) -> None:
        """Puts the module back into it."""
        for part, flag in self.flags:
            if part.training != flag:
                part.training = flag
        for parameter, trained in self.parameters:
            if parameter.requires_grad != trained:
                parameter.requires_grad_(trained)
        for place, name, buffer in self.buffers:
            place[name] = buffer

    def stand_in(self) -> None:
        """Gives the module copies of these buffers to write into."""
        for place, name, copy in self._copies():
            place[name] = copy

    def _copies(self) -> list[tuple[dict[str, Tensor | None], str, Tensor]]:
        return [(place, name, buffer.clone()) for place, name, buffer in self.buffers]


class Moment:
    """The condition of some modules, and the random numbers that come next.

    Args:
        *modules: The modules.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.conditions = [Condition(module, lasting=True) for module in modules]
        self.random = torch.get_rng_state()
        tensors = [p for module in modules for p in module.parameters()]
        elsewhere = [t.device.type for t in tensors if t.device.type not in ("cpu", "meta")]
        self.device_type = elsewhere[0] if elsewhere else "cuda"
        self.devices, self.device_random = get_device_states(*tensors)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within the block everything computes as it did then, and leaves no trace.

        Yields:
            Nothing.
        """
        before = [Condition(condition.module) for condition in self.conditions]
        try:
            for condition in self.conditions:
                condition.restore()
                condition.stand_in()
            with torch.random.fork_rng(self.devices, device_type=self.device_type):
                torch.set_rng_state(self.random)
                set_device_states(self.devices, self.device_random, device_type=self.device_type)
                yield
        finally:
            for condition in before:
                condition.restore()
