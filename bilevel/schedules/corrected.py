r"""Schedules that correct the gradients of both players by second derivatives.

With F(w) = (∇_θ L, −∇_φ q) the field of the players w = (θ, φ), J its Jacobian, A = (J − Jᵀ)/2 the
part of it that makes the players rotate, and J_× its blocks between the players, both optimizers
descend along G in the place of F:

    Consensus              G = F + γ Jᵀ F
    SymplecticAdjustment   G = F ± λ Aᵀ F
    CompetitiveGradient    G = F − J_× η G             η: the learning rates

A correction of your own is a subclass of :class:`Corrected` with its ``correct``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bilevel.adjoints.base import Detached
from bilevel.arguments import count, positive
from bilevel.distributed.job import world_size
from bilevel.errors import BilevelError, explain_missing_derivative
from bilevel.linear import gmres
from bilevel.player import take_step, zero_grad
from bilevel.problem import Batch
from bilevel.schedules.base import Schedule
from bilevel.schedules.field import Field, Slopes, differentiate
from bilevel.tree import as_real

if TYPE_CHECKING:
    from bilevel.game import Bilevel


class Corrected(Schedule):
    """The base class of schedules whose players descend along a corrected field.

    Both players are trained, by optimizers that evaluate once a step. Second derivatives are those
    of autograd: the gradients that a solver's own steps read count as constants, as in
    :class:`~bilevel.Detached`, and so does what a loss detaches. So no loss may turn a gradient
    around: for a multiplier that ascends by ``2 * w.detach() - w``, J has the wrong sign. Hooks of
    the parameters run in the products with J too: clip in step pre-hooks of the optimizers. The
    metric ``field_norm`` is ‖F‖.

    Where a constraint is active, F is not zero at an equilibrium, and players that are projected
    along G rest elsewhere: with active constraints take :class:`~bilevel.Extragradient`.
    """

    @abstractmethod
    def correct(self, field: Field, game: Bilevel, metrics: dict[str, Tensor]) -> Tensor:
        """G, along which both optimizers descend.

        Args:
            field: F and its Jacobian.
            game: The game.
            metrics: The metrics of the step, to which scalars may be added.

        Returns:
            ``(n,)``.
        """

    def check(self, game: Bilevel) -> None:
        """Checks that both players move along gradients of their own."""
        if game.leader_opt is None or game.solver_opt is None:
            raise BilevelError(
                f"{self!r} corrects the gradients of two players, of which one is not trained: "
                "take Parametric(y) or a learned update with a solver_opt, or Simultaneous()"
            )
        if not isinstance(game.adjoint, Detached):
            raise BilevelError(
                f"{self!r} is for players that each follow a gradient of their own, and with "
                f"{game.adjoint!r} the leader's is that through the answer: take Detached(), or "
                "Simultaneous()"
            )

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Moves both players once along the corrected field, on one solve."""
        if game.pool is not None and world_size() > 1:
            raise BilevelError(
                f"{self!r} does not sum its products with the Jacobian over processes: train in "
                "one, or take Extragradient() or Optimistic()"
            )
        solution = game.solve(batch)
        try:
            loss, objective, field = differentiate(game, solution.value, batch)
            metrics = game.metrics(loss, solution, objective)
            metrics["field_norm"] = field.value.norm()
            # Without autocast, which would round the products of vectors.
            with torch.no_grad(), torch.autocast(loss.device.type, enabled=False):
                corrected = self.correct(field, game, metrics)
        except RuntimeError as error:
            explain_missing_derivative(error, self)
            raise
        if not (isinstance(corrected, Tensor) and corrected.shape == field.value.shape):
            raise BilevelError(
                f"{type(self).__name__}.correct returned a {type(corrected).__name__}: it returns "
                f"one vector of {len(field.value)} numbers, as field.value; field.flat makes it of "
                "tensors"
            )
        _move(game, field.split(corrected), loss)
        return metrics


class Consensus(Corrected):
    r"""Consensus optimization: both players also minimise ‖F‖² (Mescheder et al., 2017).

    .. math:: w \leftarrow w - \eta\,(F + \gamma J^\top F)
        = w - \eta\,(F + \tfrac{\gamma}{2} \nabla \|F\|^2)

    On f(x, y) = xy it contracts by √((1 − ηγ)² + η²). It is drawn to all points where F = 0,
    equilibria or not. A step costs 2 to 3 of :class:`~bilevel.Simultaneous`.

    Args:
        gamma: γ.

    Raises:
        BilevelError: If γ is not positive; in :class:`~bilevel.Bilevel`, if a player is not
            trained, or the adjoint is not :class:`~bilevel.Detached`.

    Example:
        >>> Consensus(0.1)
        Consensus(0.1)
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = positive("gamma", gamma)

    def correct(self, field: Field, game: Bilevel, metrics: dict[str, Tensor]) -> Tensor:
        """F + γ Jᵀ F."""
        return field.value + self.gamma * field.transposed(field.value)


class SymplecticAdjustment(Corrected):
    r"""Symplectic gradient adjustment, SGA (Balduzzi et al., 2018).

    .. math:: w \leftarrow w - \eta\,(F + \lambda A^\top F), \quad A = \tfrac12 (J - J^\top)

    It vanishes in games of descent only (of a potential), and turns F towards the equilibrium in
    games of rotation only. With ``align`` the sign of λ is that of ⟨F, ∇H⟩⟨AᵀF, ∇H⟩/n + 1/10 for n
    parameters, where ∇H = Jᵀ F is the gradient of ‖F‖²/2: the adjustment attracts to stable points
    and repels from unstable ones. On f(x, y) = xy it is :class:`Consensus`.

    A step costs 3 to 5 of :class:`~bilevel.Simultaneous`.

    Args:
        strength: λ.
        align: Whether to choose the sign; the metric ``sign`` is that of the step.

    Raises:
        BilevelError: As in :class:`Consensus`.

    Example:
        >>> SymplecticAdjustment()
        SymplecticAdjustment()
    """

    def __init__(self, strength: float = 1.0, *, align: bool = True) -> None:
        self.strength = positive("strength", strength)
        self.align = align

    def correct(self, field: Field, game: Bilevel, metrics: dict[str, Tensor]) -> Tensor:
        """F ± λ Aᵀ F."""
        slope = field.transposed(field.value)
        adjustment = (slope - field.product(field.value)) / 2
        if self.align:
            score = (field.value @ slope) * (adjustment @ slope) / len(slope) + 0.1
            metrics["sign"] = score.sign()
            adjustment = adjustment * metrics["sign"]
        return field.value + self.strength * adjustment


class CompetitiveGradient(Corrected):
    r"""Competitive gradient descent, CGD (Schäfer and Anandkumar, 2019).

    Each player takes the step that is best if the other takes its own, in the model of the game
    that is bilinear in both steps and adds ‖step‖²/2η to each loss: its Nash equilibrium is

    .. math:: w \leftarrow w - \eta\,G, \quad (I + J_\times \eta)\,G = F

    On f(x, y) = xy it contracts by 1/√(1 + η²) at any η. The rates η are read from both optimizers
    in each step. Of others than plain SGD the steps differ from those that the players expect of
    each other.

    A step costs about 3 of :class:`~bilevel.Simultaneous`, and 1 more for each iteration of
    GMRES, which keeps a copy of the leader and waits for the device; their number grows with
    η ‖J_×‖. The metric ``residual`` is that of the system, ‖F − (I + J_× η) G‖ / ‖F‖.

    Args:
        max_steps: The largest number of iterations.
        tolerance: They end when the residual is as small.

    Raises:
        BilevelError: As in :class:`Consensus`, or if an optimizer does not tell its rates.

    Example:
        >>> CompetitiveGradient()
        CompetitiveGradient()
    """

    def __init__(self, max_steps: int = 20, *, tolerance: float = 1e-6) -> None:
        self.max_steps = count("max_steps", max_steps)
        self.tolerance = positive("tolerance", tolerance)

    def check(self, game: Bilevel) -> None:
        """Checks also that the optimizers tell their learning rates."""
        super().check(game)
        for optimizer in (game.leader_opt, game.solver_opt):
            groups = getattr(optimizer, "param_groups", [{}])
            if not all("lr" in group for group in groups):
                raise BilevelError(
                    f"{self!r} reads the learning rates of both players, and "
                    f"{type(optimizer).__name__} has none in its param_groups: take "
                    "torch.optim.SGD, or Consensus(…)"
                )

    def correct(self, field: Field, game: Bilevel, metrics: dict[str, Tensor]) -> Tensor:
        """The G with (I + J_× η) G = F; the follower's part follows from the leader's."""
        sizes = field.led, len(field.value) - field.led
        (f, g), (alpha, beta) = field.value.split(sizes), _learning_rates(game, field).split(sizes)

        def product(u: Tensor) -> Tensor:
            return u - field.to_leader(beta * field.to_follower(alpha * u))

        b = f - field.to_leader(beta * g)
        norm = field.value.norm().clamp(min=torch.finfo(f.dtype).tiny)
        # That of GMRES is relative to b, which is η ‖J_×‖ times as large as F if that is large.
        tolerance = self.tolerance * float((norm / b.norm()).clamp(max=1))
        solution = gmres(product, b, self.max_steps, tolerance=tolerance)
        metrics["residual"] = residual = solution.residual.norm() / norm
        led = torch.where(residual.isfinite(), solution.value, torch.nan)  # as F is, or J
        return torch.cat([led, g - field.to_follower(alpha * led)])


def _learning_rates(game: Bilevel, field: Field) -> Tensor:
    """η of each coordinate; 0 where no optimizer moves it."""
    groups = [group for opt in (game.leader_opt, game.solver_opt) for group in opt.param_groups]
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    sizes = [(w, as_real(w).numel()) for w in field.parameters]
    return torch.cat([field.value.new_ones(n) * rates.get(w, 0.0) for w, n in sizes])


def _move(game: Bilevel, gradients: Slopes, loss: Tensor) -> None:
    """A step of both optimizers along these gradients."""

    def fill(parameters: list[Tensor]) -> Tensor:
        for parameter in parameters:
            parameter.grad = gradients.get(parameter)
        return loss

    def refuse(_: list[Tensor]) -> Tensor:
        raise BilevelError(
            f"{game.schedule!r} corrects the gradients of one evaluation a step, and "
            f"{type(game.leader_opt).__name__} asks for another: take torch.optim.SGD or Adam"
        )

    fill(zero_grad(game.solver))
    take_step(game.leader_opt, game.leader, first=fill, again=refuse)
    game.solver_opt.step()
