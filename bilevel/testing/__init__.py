"""Conformance checks for your own problems, updates, solvers and adjoints.

Each raises an :class:`AssertionError` that says which requirement is violated:

    bilevel.testing.check_follower(MyFollower(), leader, batch)
    bilevel.testing.check_update(MyUpdate(), y, gradient)
    bilevel.testing.check_solver(MySolver(), MyFollower(), leader, batch)
    bilevel.testing.check_adjoint(MyAdjoint(), MySolver(), MyFollower(), leader, batch)
"""

from bilevel.testing.conformance import check_follower, check_solver
from bilevel.testing.finite_differences import check_adjoint
from bilevel.testing.updates import check_update

__all__ = ["check_adjoint", "check_follower", "check_solver", "check_update"]
