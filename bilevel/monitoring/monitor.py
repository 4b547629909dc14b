"""`Monitor` detects from a game's iterates whether training converges, cycles or diverges."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bilevel.arguments import instance_of
from bilevel.errors import BilevelError
from bilevel.game import Bilevel
from bilevel.monitoring.dynamics import Verdict, classify, combine
from bilevel.player import trainable_parameters
from bilevel.schedules import Corrected, Lookahead, Optimistic, ProximalPoint
from bilevel.tree import as_real

SAMPLED = 128
"""The number of coordinates observed of each player; all if it has no more."""
ROWS = 1024
"""The number of rows of each record."""
FACTOR = 4
"""The ratio of the strides of two successive records."""


class Monitor:
    """Detects from a game's iterates whether training converges, cycles or diverges.

    It observes the trainable parameters of leader and solver, of each 128 coordinates chosen at
    random once: a cycle moves nearly all coordinates, so a few show it. An observation gathers them
    on the device, without synchronisation and without a copy of the parameters.

    The iterates are recorded at strides 1, 4, 16, … at the same time, the newest 1,024 rows of
    each; a new stride begins when the longest record is full. So the memory is bounded, and some
    record resolves any period up to a quarter of the run. A period that is aliased in a coarse
    record is resolved by a finer one, which takes precedence. The first quarter of the run is left
    out as transient.

    An alarm can be harmless: if the batches come in the same order each epoch, the iterates cycle
    with the epoch. Shuffle them.

    Args:
        game: The game, on its final device.

    Raises:
        BilevelError: If neither player has a trainable parameter.

    Example:
        >>> import bilevel
        >>> class Saddle(bilevel.FollowerProblem):
        ...     sense = "max"
        ...     def init(self, batch): return torch.zeros(())
        ...     def objective(self, leader, y, batch): return leader.model.weight.sum() * y
        >>> model, saddle = torch.nn.Linear(1, 1, bias=False), Saddle()
        >>> leader, solver = bilevel.ZeroSum(model, saddle), bilevel.Parametric(torch.tensor(1.0))
        >>> game = bilevel.Bilevel(leader, saddle, solver, schedule=bilevel.Alternating(),
        ...                        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        ...                        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1))
        >>> monitor = Monitor(game)
        >>> for _ in range(500):
        ...     metrics = game.step(batch=None)
        ...     monitor.observe()
        >>> verdict = monitor.verdict()
        >>> verdict.kind, round(verdict.period, 1), verdict.alarm
        ('cycling', 62.8, True)
    """

    def __init__(self, game: Bilevel) -> None:
        instance_of("game", game, Bilevel, "the Bilevel whose steps are watched")
        both = trainable_parameters(game.leader), trainable_parameters(game.solver)
        players = [player for player in both if player]
        if not players:
            raise BilevelError(
                "neither the leader nor the solver has a trainable parameter: there are no "
                "iterates to watch; leave the monitor out"
            )
        self._sizes = [sum(parameter.numel() for parameter in player) for player in players]
        chosen = [_sample(player) for player in players]
        self._sources = [source for sources in chosen for source in sources]
        self._scale = torch.cat([_scale(*pair) for pair in zip(self._sizes, chosen, strict=True)])
        self._records = [self._empty()]
        self._steps = 0
        damps = isinstance(game.schedule, (ProximalPoint, Optimistic, Lookahead, Corrected))
        self._damping = type(game.schedule).__name__ if damps else None

    def observe(self) -> None:
        """Records the current iterates; call it once a step."""
        newest = self._records[0][self._steps % ROWS]
        with torch.no_grad():
            torch.cat([parameter.take(index) for parameter, index in self._sources], out=newest)
        for level, record in enumerate(self._records[1:], start=1):
            row, between = divmod(self._steps, FACTOR**level)
            if between:
                break
            record[row % ROWS] = newest
        self._steps += 1
        if self._steps == ROWS * FACTOR ** (len(self._records) - 1):
            coarser = self._empty()
            coarser[: ROWS // FACTOR] = self._records[-1][::FACTOR]
            self._records.append(coarser)

    def verdict(self) -> Verdict:
        """Reads the records; on a GPU this waits for the device.

        Returns:
            The verdict. Its period is in steps, that is observations; its radius is that of all
            parameters, estimated from those observed.
        """
        levels = range(len(self._records))
        strides = [FACTOR**level for level in levels]
        verdict = combine([classify(self._window(n), strides[n]) for n in levels], strides)
        if verdict.needed is None:
            return replace(verdict, damping=self._damping)
        return replace(verdict, needed=math.ceil(verdict.needed * 4 / 3))  # a quarter is left out

    def _window(self, level: int) -> Tensor:
        """The recorded rows of the last three quarters of the run, oldest first."""
        stride = FACTOR**level
        end = math.ceil(self._steps / stride)
        begin = max(end - ROWS, math.ceil(self._steps / 4 / stride))
        record = self._records[level].cpu() * self._scale.to(self._records[level].dtype)
        rows = record[torch.arange(begin, end, device="cpu") % ROWS]
        return as_real(rows).flatten(1)

    def _empty(self) -> Tensor:
        parameters = [parameter for parameter, _ in self._sources]
        dtype = reduce(torch.promote_types, [parameter.dtype for parameter in parameters])
        return torch.zeros(ROWS, len(self._scale), dtype=dtype, device=parameters[0].device)

    def state_dict(self) -> dict[str, Any]:
        """The records, to resume a run.

        Returns:
            A tensor and plain values.
        """
        records = torch.stack(self._records)
        return {"records": records, "steps": self._steps, "sizes": self._sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the records.

        Args:
            state: What :meth:`state_dict` returned, for a game with the same players.

        Raises:
            BilevelError: If the players had another size.
        """
        records, sizes, here = state["records"], state["sizes"], self._records[0]
        if records.shape[1:] != here.shape or sizes != self._sizes:
            raise BilevelError(
                f"the monitor's state has records of shape {tuple(records.shape[1:])} of players "
                f"of {sizes} numbers, these players give {tuple(here.shape)} of {self._sizes}: it "
                "was written for other players; build the game as it was when the state was saved"
            )
        self._records = list(records.to(here, copy=True).unbind())
        self._steps = state["steps"]


Source = tuple[nn.Parameter, Tensor]  # a parameter, and the indices observed of it


def _sample(player: list[nn.Parameter]) -> list[Source]:
    ends = np.cumsum([parameter.numel() for parameter in player])
    # A generator of its own: observing a game must not change its random numbers.
    chosen = np.random.default_rng(0).choice(ends[-1], min(ends[-1], SAMPLED), replace=False)
    chosen.sort()
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return [
        (parameter, torch.as_tensor(part - (end - parameter.numel()), device=parameter.device))
        for parameter, end, part in zip(player, ends, parts, strict=True)
        if len(part)
    ]


def _scale(size: int, sources: list[Source]) -> Tensor:
    """Factors that make the sum of squares over the sample estimate that over the player."""
    observed = sum(len(index) for _, index in sources)
    return torch.full((observed,), math.sqrt(size / observed), dtype=torch.float64, device="cpu")
