"""Adjoints that run the solve again; with a warm-started solver their derivative goes on with it.

Such a solver goes on from its last answer, which depends on θ already. A derivative that begins
anew with each solve leaves that out, and favours what pays off at once (Wu et al., 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bilevel.adjoints.pullback import Pullback
from bilevel.adjoints.solved import SolvedProblem
from bilevel.containers import partition
from bilevel.problem import FollowerProblem, LeaderProblem
from bilevel.solvers import Iterative, Solver


class Continued(Pullback):
    """An adjoint that remembers what it knows of the answer from which the next solve goes on.

    That is dropped where the next solve starts elsewhere: anew (``solver.kept = None``), or from
    the answer of a solve that no backward pass has followed, and where other parameters train.
    """

    _end: Any = None
    _known: Any = None
    _wanted: Sequence[str] = ()

    def check(self, solver: Solver, follower: FollowerProblem, leader: LeaderProblem) -> None:
        """Checks that the solver can be run again from where it has started."""
        if not isinstance(solver, Iterative):
            solver.check_repeatable(f"{self!r} solves again for other leaders")
        self.pulls_zero = not solver.repeatable

    def known_at_start(self, problem: SolvedProblem) -> Any:
        """What is known of the point from which a solve has started.

        Args:
            problem: The problem.

        Returns:
            What :meth:`remember` was given for the solve that has ended there; None if none has.
        """
        if problem.kept_before is None:
            return None
        same = [*self._wanted] == [*problem.wanted] and _same(self._end, problem.kept_before)
        known = self._known if same else None
        self.warn_once(
            known is None,
            "the derivative of the start is not known: the solver goes on from an answer that no "
            "backward pass of the same parameters has followed, so that the gradient counts the "
            "steps since; take a backward pass after each solve, and evaluate with "
            "copy.copy(solver)",
        )
        return known

    def remember(self, problem: SolvedProblem, known: Any) -> None:
        """Remembers what is known of the point at which a solve has ended.

        Args:
            problem: The problem.
            known: Tensors in lists, tuples and dicts.
        """
        if problem.kept_after is not None:
            self._end, self._known, self._wanted = problem.kept_after, known, problem.wanted

    def state_dict(self) -> dict[str, Any]:
        """The last answer of a warm-started solver, and what this adjoint knows of it."""
        # By the class's name: a game refuses a state with other names, as of another adjoint.
        return {"end": self._end, type(self).__name__: self._known, "wanted": [*self._wanted]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned."""
        self._end, self._wanted = state["end"], state["wanted"]
        self._known = state[type(self).__name__]


def _same(end: Any, start: Any) -> bool:
    """Whether two kept answers are the same; those of a checkpoint are copies."""
    before, now = partition(end)[0], partition(start)[0]
    if end is None or [one.shape for one in before] != [one.shape for one in now]:
        return False
    return all(torch.equal(a, b.to(a)) for a, b in zip(before, now, strict=True))
