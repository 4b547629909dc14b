"""Conformance checks for a problem, an update, a solver or an adjoint of your own.

Each raises an :class:`AssertionError` that says which promise is broken, and returns nothing:

    bilevel.testing.check_follower(MyFollower(), leader, batch)
    bilevel.testing.check_update(MyUpdate(), y, gradient)
    bilevel.testing.check_solver(MySolver(), MyFollower(), leader, batch)
    bilevel.testing.check_adjoint(MyAdjoint(), MySolver(), MyFollower(), leader, batch)
"""

from bilevel.testing.conformance import check_follower, check_solver, check_update
from bilevel.testing.finite_differences import check_adjoint

__all__ = ["check_adjoint", "check_follower", "check_solver", "check_update"]
