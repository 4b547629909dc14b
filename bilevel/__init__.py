"""Bilevel optimization in PyTorch, with hand-designed and learned inner solvers.

An outer problem (the leader) is trained against an inner problem (the follower), whose solver may
itself be trained:

    min over θ   L(θ, y*)     s.t.   y* ∈ argmax over y ∈ Y of q(θ, y)

Six nouns make up every algorithm:

    LeaderProblem     the outer problem: θ and its loss L(θ, y*)
                      your own, or ZeroSum(model, follower)
    FollowerProblem   the inner problem: the objective q(θ, y) and the set Y
                      your own: init, objective, project
    Update            one step rule for y, hand-designed or learned
                      updates.SignGradient, Optimizer, CNN, CoordinateRNN, MLP, …
    Solver            the loop that computes y*
                      Iterative(update, steps), Parametric(y); pgm, fgsm
    Adjoint           how y*(θ) is differentiated
                      Detached, Unrolled, Implicit, Penalty, Forward, Sampled
    Schedule          the order in which θ and the solver's φ move
                      Simultaneous, Alternating, Extragradient, Optimistic, …

Named algorithms are compositions, so replacing one with another changes one line:

    pgm(step, steps)        = Iterative(SignGradient(step), steps)
    fgsm(eps)               = pgm(eps, 1)
    no follower at all      = pgm(step, 0)
    Naive L2L attacker      = Iterative(CNN(..., inputs=("context",)), steps=1)
    Grad L2L attacker       = Iterative(CNN(...), steps=1)
    2-Step L2L attacker     = Iterative(CNN(...), steps=2)
    L2L-GAIL                = Iterative(MLP(m), steps=1, warm_start=True)
    gradient descent–ascent = Simultaneous with Parametric(y)
    proximal point          = ProximalPoint(k), of which Extragradient is k = 2

and ``Bilevel(leader, follower, solver, leader_opt=…, solver_opt=…)`` trains them. The kits
(``bilevel.robustness``, ``bilevel.imitation``) are imported by name; the core imports neither.
"""

from bilevel import games, testing, updates
from bilevel.adjoints import (
    Adjoint,
    Detached,
    Forward,
    Implicit,
    Penalty,
    Pullback,
    Sampled,
    Unrolled,
)
from bilevel.alias import fgsm, pgm
from bilevel.errors import BilevelError, HypergradientWarning, NonFiniteError
from bilevel.frozen import frozen
from bilevel.game import Bilevel
from bilevel.metrics import MetricLog
from bilevel.monitoring import Monitor, Verdict
from bilevel.problem import FollowerProblem, LeaderProblem, ZeroSum
from bilevel.schedules import (
    Alternating,
    CompetitiveGradient,
    Consensus,
    Extragradient,
    Lookahead,
    Optimistic,
    ProximalPoint,
    Schedule,
    Simultaneous,
    SymplecticAdjustment,
)
from bilevel.solvers import Iterative, Oracle, Parametric, Solution, Solver
from bilevel.updates import Update

__version__ = "0.1.0"

__all__ = [
    "Adjoint",
    "Alternating",
    "Bilevel",
    "BilevelError",
    "CompetitiveGradient",
    "Consensus",
    "Detached",
    "Extragradient",
    "FollowerProblem",
    "Forward",
    "HypergradientWarning",
    "Implicit",
    "Iterative",
    "LeaderProblem",
    "Lookahead",
    "MetricLog",
    "Monitor",
    "NonFiniteError",
    "Optimistic",
    "Oracle",
    "Parametric",
    "Penalty",
    "ProximalPoint",
    "Pullback",
    "Sampled",
    "Schedule",
    "Simultaneous",
    "Solution",
    "Solver",
    "SymplecticAdjustment",
    "Unrolled",
    "Update",
    "Verdict",
    "ZeroSum",
    "fgsm",
    "frozen",
    "games",
    "pgm",
    "testing",
    "updates",
]
