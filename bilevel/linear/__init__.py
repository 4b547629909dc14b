"""Matrix-free solvers of linear systems A x = b, which report what they learned about A.

Implicit differentiation, competitive gradients and trust-region policy optimization need them. None
raises if A does not meet its assumptions. Numbers are real.

    conjugate_gradient    A symmetric and positive definite; one product a step, little memory; if b
                          has several rows, each is solved by itself
    neumann               η Σ (I − ηA)ᵏ b, where I − ηA contracts; one product a step
    gmres                 any A; one product a step, keeps a vector for each step
    exact                 any A; as many products as unknowns (of a row, if b has several), and the
                          matrix in memory
"""

from bilevel.linear.least_squares import exact, gmres
from bilevel.linear.recurrences import conjugate_gradient, neumann
from bilevel.linear.system import LinearSolution

__all__ = ["LinearSolution", "conjugate_gradient", "exact", "gmres", "neumann"]
