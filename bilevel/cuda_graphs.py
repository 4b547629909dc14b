"""Steps as a CUDA graph: recorded once, then launched as a whole, without Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_map_only

from bilevel import distributed
from bilevel.containers import PLAIN, attributes, partition
from bilevel.errors import BilevelError, describe, first_line
from bilevel.game import Bilevel
from bilevel.problem import Batch
from bilevel.solvers import Solver
from bilevel.updates.base import Update

WARM_UP = 3
"""Steps of one size before it is captured: they compile, search algorithms and allocate."""

PATIENCE = 30
"""Steps without one that is captured, after which it warns."""

_NOT_CAPTURED = (
    f"{PATIENCE} steps were computed as usual, since each differs from the one before in its "
    "batch's shapes or numbers, an optimizer's settings, or a number or tensor among the public "
    "attributes of the game's parts: nothing is gained; give a counter or what is kept for later "
    "a name that begins with _, or leave CUDA graphs out"
)

VARIABLE = ("params", "lr")
"""What an optimizer's kernels read from the device."""


def check_cuda_graphs(device: torch.device) -> None:
    """Checks that steps can be captured.

    Args:
        device: The device that computes them.

    Raises:
        BilevelError: If it has no CUDA graphs, or several processes train.
    """
    if not hasattr(torch.get_device_module(device), "CUDAGraph"):
        raise BilevelError(
            f"the device is {device}: CUDA graphs are for GPUs of Nvidia and AMD; leave them out"
        )
    if distributed.world_size() > 1:
        raise BilevelError(
            f"{distributed.world_size()} processes train together: their communication cannot be "
            "captured in a CUDA graph; train in one process, or leave CUDA graphs out"
        )


class CapturedStep:
    """Takes steps of a game, from the fourth on by replaying a CUDA graph.

    A graph launches all kernels of a step at once, which pays where they are short and the GPU
    would wait for Python, as in unrolled solves of small problems. It repeats them at the same
    addresses: a batch is copied to where the captured one was, and learning rates are read from the
    device. A step of another kind is computed as usual, and captured anew if it is the fourth of
    them in a row: with a batch of other shapes, such as an epoch's last one, or another number or
    string in it, with another momentum, networks in another mode, other parameters frozen, or
    another number among the public attributes of the parts (a radius of the follower,
    ``solver.steps``, the step of an update). The graph keeps the memory of a step.

    Args:
        game: The game, on a GPU, trained by optimizers that can be captured, such as the fused ones
            of ``torch.optim``. What a step leaves in Python, beside the states of the game's parts,
            is not repeated.
        pool: Memory shared with other graphs, see ``torch.cuda.graph_pool_handle``.

    Raises:
        BilevelError: If the device has no CUDA graphs, or several processes train the game.

    Example:
        ::

            step = CapturedStep(game)
            for batch in batches:
                metrics = step(batch)  # in place of game.step(batch)
    """

    def __init__(self, game: Bilevel, pool: Any = None) -> None:
        self.game = game
        self._device = next(game.leader.parameters()).device
        check_cuda_graphs(self._device)
        self._gpu = torch.get_device_module(self._device)
        self._pool = pool
        self._side = self._gpu.Stream()  # one, since memory that was freed stays with its stream
        self._graph: Any = None
        self._captured: Any = None  # the kind of the step in it
        self._kind: Any = None  # of the last step that was computed as usual
        self._taken = self._waited = 0  # such steps of that kind, and of any, in a row
        self._held = self._states()

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Takes a step.

        Args:
            batch: The data of this step: tensors and plain values in tuples, lists and dicts.

        Returns:
            What :meth:`~bilevel.Bilevel.step` returns.

        Raises:
            BilevelError: If a step of this game cannot be captured.
        """
        kind = _kind(batch), self._settings(), self._flags(), self._numbers()
        if any(now is not held for now, held in zip(self._states(), self._held, strict=True)):
            self._graph = self._kind = None  # a state was loaded, into new memory
            self._held = self._states()
        if self._graph is None or kind != self._captured:
            self._taken = self._taken + 1 if kind == self._kind else 1
            self._kind = kind
            if self._taken <= WARM_UP:
                self._waited += 1
                if self._waited == PATIENCE:
                    warnings.warn(_NOT_CAPTURED, stacklevel=2)
                return self._warm_up(batch)
            self._graph = None  # whose memory is free for the next one
            self._graph, self._captured = self._capture(batch), kind
        self._taken = self._waited = 0
        return self._replay(batch)

    def _replay(self, batch: Batch) -> dict[str, Tensor]:
        """The step that was captured, with this batch and the learning rates of now."""
        for held, given in zip(partition(self._batch)[0], partition(batch)[0], strict=True):
            held.copy_(given)
        for group, rate in zip(self._groups(), self._rates, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        self.game.steps += 1
        return {name: value.clone() for name, value in self._metrics.items()}

    def _warm_up(self, batch: Batch) -> dict[str, Tensor]:
        """A step on a stream of its own, as torch asks for; the last one shows what it replaces."""
        current, side = self._gpu.current_stream(), self._side
        before = self._places()
        side.wait_stream(current)
        with self._gpu.stream(side):
            metrics = self.game.step(batch)
        current.wait_stream(side)
        if self._taken == WARM_UP:
            self._check_repeatable(before, self._places())
        return metrics

    def _places(self) -> dict[str, Any]:
        """Where the state of the game lies on the device, and what there is of it on the host."""
        state = {**self.game.state_dict(), "steps": None}
        leaves, _ = tree_flatten_with_path(state)
        return {keystr(path): self._place(value) for path, value in leaves}

    def _place(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.data_ptr() if value.device == self._device else value.tolist()

    def _check_repeatable(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Checks that a step changes its state in place and on the device, as its kernels do."""
        moved = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if moved:
            raise BilevelError(
                f"a step under {self.game.schedule!r} changes the state {moved[0]} on the host, or "
                "puts it into new memory, which a CUDA graph does not repeat; give optimizers "
                "fused=True, a schedule without memory, or leave CUDA graphs out (applications: "
                "--cuda-graphs off)"
            )

    def _capture(self, batch: Batch) -> Any:
        """The graph of a step; recording computes nothing."""
        # Not by deepcopy, which copies all of the data where a tensor is a view of them.
        self._batch = tree_map_only(Tensor, Tensor.clone, batch)
        self._rates = [torch.zeros((), device=self._device) for _ in self._groups()]
        graph, steps = self._gpu.CUDAGraph(), self.game.steps
        try:
            with self._capturable(), self._gpu.graph(graph, pool=self._pool):
                self._metrics = self.game.step(self._batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = error.__context__ or error  # ending a capture that has failed fails as well
            if isinstance(reason, torch.OutOfMemoryError | KeyboardInterrupt):
                raise reason from None
            raise BilevelError(
                f"a step cannot be captured in a CUDA graph ({first_line(reason)}): something in "
                "it waits for the device; give optimizers fused=True, or leave CUDA graphs out "
                "(applications: --cuda-graphs off)"
            ) from error
        self.game.steps = steps
        return graph

    def _settings(self) -> list[dict[str, Any]]:
        """The optimizers' settings that captured kernels have as numbers, as they were."""
        return [
            {name: self._place(value) for name, value in group.items() if name not in VARIABLE}
            for group in self._groups()
        ]

    def _flags(self) -> list[bool]:
        """The modes of the players' modules, and which of their parameters are trained."""
        players = self.game.leader, self.game.solver
        modes = [part.training for player in players for part in player.modules()]
        return modes + [p.requires_grad for player in players for p in player.parameters()]

    def _numbers(self) -> list[Any]:
        """Numbers that the parts hold, such as a radius, which captured kernels have likewise."""
        game = self.game
        rules = [part for part in game.solver.modules() if isinstance(part, Solver | Update)]
        parts = game.leader, game.follower, game.adjoint, game.schedule, *rules
        held = (item for part in parts for item in attributes(part).items())
        return [self._number(value) for name, value in held if not name.startswith("_")]

    def _number(self, value: Any) -> Any:
        """It, or where a tensor lies that kernels read; None of what is neither."""
        if type(value) in PLAIN:
            return value
        if isinstance(value, dict):
            value = [*value.values()]
        if isinstance(value, list | tuple):
            plain = PLAIN.issuperset(map(type, value))  # perhaps all names of a dataset
            return [*value] if plain else [self._number(part) for part in value]
        if isinstance(value, Tensor):
            on_device = value.device == self._device and value.layout == torch.strided
            return self._place(value) if on_device or value.dim() == 0 else None
        return value if isinstance(value, int | float | str) else None

    def _optimizers(self) -> list[Any]:
        return [one for one in (self.game.leader_opt, self.game.solver_opt) if one is not None]

    def _states(self) -> list[Any]:
        """The optimizers' states, of which loading makes new ones."""
        return [one.state for one in self._optimizers()]

    def _groups(self) -> list[dict[str, Any]]:
        return [group for one in self._optimizers() for group in one.param_groups]

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """Within the block optimizers read their learning rates from the device."""
        before = [dict(group) for group in self._groups()]
        try:
            for group, rate in zip(self._groups(), self._rates, strict=True):
                group["lr"] = rate
                if "capturable" in group:
                    group["capturable"] = True
            yield
        finally:
            for group, kept in zip(self._groups(), before, strict=True):
                group.update(kept)


def _kind(batch: Batch) -> Any:
    """What a captured step depends on, beside the numbers in the batch's tensors."""
    leaves, structure = tree_flatten(batch)
    for leaf in leaves:
        if not isinstance(leaf, Tensor | bool | int | float | str | None):
            raise BilevelError(
                f"the batch holds {describe(leaf)}: tensors in it would not be seen to change "
                "between replays of a CUDA graph; give tuples, lists or dicts of tensors"
            )
    kinds = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return structure, kinds
