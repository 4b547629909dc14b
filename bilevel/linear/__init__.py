"""Matrix-free solvers of linear systems A x = b, which report what they learned about A.

Implicit differentiation, competitive gradients and trust-region policy optimization need them.
"""

from bilevel.linear.methods import conjugate_gradient, exact, gmres, neumann
from bilevel.linear.system import LinearSolution

__all__ = [
    "LinearSolution",
    "conjugate_gradient",
    "exact",
    "gmres",
    "neumann",
]
