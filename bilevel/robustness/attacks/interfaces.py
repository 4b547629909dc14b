"""The attacks of this library behind the interfaces of other packages.

    Adversary         adversary(images, labels) → images, as in torchattacks
    foolbox_attack    attack(fmodel, images, labels, epsilons=…), as in foolbox

Classifiers need no wrapper: an ``nn.Module`` from images in [0, 1] to logits is what AutoAttack,
RobustBench, torchattacks and foolbox take. For attacks of other packages in an evaluation of this
one see :class:`~bilevel.robustness.ExternalAttack`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bilevel import Solver
from bilevel.errors import BilevelError
from bilevel.robustness.attacks.attack import attack, for_evaluation
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.bounds import equal_bounds, interval
from bilevel.robustness.threats.l1 import L1
from bilevel.robustness.threats.losses import TARGETED, Targeted
from bilevel.robustness.threats.perturbation import L2, Linf, Perturbation
from bilevel.robustness.threats.threat import Threat, loss_of

if TYPE_CHECKING:
    from foolbox.attacks.base import FixedEpsilonAttack
    from foolbox.distances import Distance
    from foolbox.models.base import Model


@dataclass(frozen=True, eq=False, repr=False)
class Adversary:
    """A solver, learned or not, as a function of images and labels, as in torchattacks.

    It can be combined with torchattacks' own attacks in ``torchattacks.MultiAttack``.

    Args:
        model: The classifier, from the threat model's data to logits; it is left as it was.
        follower: The threat model.
        solver: The attack, left as it was; a learned one computes in evaluation mode.

    Example:
        >>> from bilevel import fgsm
        >>> adversary = Adversary(nn.Flatten(), Linf(0.1), fgsm(0.1))
        >>> adversary(torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([0]))
        tensor([[[[0.4000, 0.6000]]]])
    """

    model: nn.Module
    follower: Threat
    solver: Solver

    def __call__(self, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """Attacks a batch.

        Args:
            images: ``(B, C, H, W)`` float in [0, 1], or what else the threat model takes, on the
                classifier's device.
            labels: Their classes, ``(B,)`` int64.
            targets: For a targeted loss the classes to move toward, likewise.

        Returns:
            Adversarial images.

        Raises:
            BilevelError: If the images or labels are not of that kind.
        """
        x = images.detach()
        batch = Batch(x, labels) if targets is None else Targeted(x, labels, targets)
        return attack(self.model, self.follower, for_evaluation(self.solver), batch).x

    def __repr__(self) -> str:
        return f"Adversary({self.follower!r}, {self.solver!r})"


def foolbox_attack(
    make_follower: Callable[[float], Perturbation], make_solver: Callable[[float], Solver]
) -> FixedEpsilonAttack:
    """A solver, learned or not, as a foolbox ``FixedEpsilonAttack``.

    foolbox passes ε in the call, so follower and solver are functions of it. A learned attacker
    is the same at every ε, ``lambda eps: attacker``: its steps are those of the ε that it was
    trained for, projected onto the ball. At a larger ε it does not search most of the ball, and
    its success rate there means little.

    The classifier computes in the mode in which foolbox wraps it: call ``eval()`` first, as for
    all of foolbox's attacks.

    Args:
        make_follower: From ε to the threat model, such as :class:`Linf` or :class:`L2`; with a
            targeted loss for foolbox's ``TargetedMisclassification``.
        make_solver: From ε to the attack, such as :func:`~bilevel.fgsm`; ``lambda eps: APGD()`` for
            an attack that takes ε from the threat model.

    Returns:
        ``attack(fmodel, images, labels, epsilons=…)``, which returns the raw images, the images
        clipped to ε, and which of them are adversarial; for models of the threat model's bounds.

    Raises:
        BilevelError: If foolbox is not installed.

    Example:
        >>> from bilevel import fgsm
        >>> from foolbox import PyTorchModel
        >>> fmodel = PyTorchModel(nn.Flatten().eval(), bounds=(0, 1), device="cpu")
        >>> images, labels = torch.tensor([[[[0.6, 0.5]]]]), torch.tensor([0])
        >>> attack = foolbox_attack(Linf, fgsm)
        >>> raw, clipped, success = attack(fmodel, images, labels, epsilons=[0.02, 0.1])
        >>> success
        tensor([[False], [ True]])
    """
    try:
        from eagerpy.astensor import astensor, astensor_
        from foolbox.attacks.base import FixedEpsilonAttack, raise_if_kwargs
    except ImportError as error:
        raise BilevelError(
            f"foolbox_attack cannot import foolbox ({error}): it is an optional dependency; "
            "pip install foolbox"
        ) from error

    class InFoolbox(FixedEpsilonAttack):
        """The solver at the ε that foolbox passes."""

        def __init__(self) -> None:
            self.make_follower = make_follower
            self.make_solver = make_solver

        @property
        def distance(self) -> Distance:
            return _distance(make_follower(0.0))

        def run(
            self, model: Model, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any
        ) -> Any:
            raise_if_kwargs(kwargs)
            _check_bounds(model, make_follower(0.0))
            images, restore = astensor_(inputs)
            classifier, x = _FoolboxModule(model), images.raw.detach()
            batch = _batch(classifier, x, criterion, make_follower(0.0))
            if epsilon > 0:  # the ball is a point at 0, and fgsm(0) is an error
                follower, solver = make_follower(epsilon), for_evaluation(make_solver(epsilon))
                x = attack(classifier, follower, solver, batch).x
            return restore(astensor(x))

    return InFoolbox()


class _FoolboxModule(nn.Module):
    """A foolbox model as an ``nn.Module``."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def _batch(
    classifier: nn.Module, images: Tensor, criterion: Any, follower: Perturbation
) -> Batch | Targeted:
    """The images with what foolbox's criterion knows of their classes."""
    from foolbox.attacks.base import get_criterion
    from foolbox.criteria import Misclassification, TargetedMisclassification

    criterion, targeted = get_criterion(criterion), loss_of(follower) in TARGETED
    if targeted and isinstance(criterion, TargetedMisclassification):
        with torch.no_grad():  # no labels are given: the classes to leave are the predicted ones
            return Targeted(images, classifier(images).argmax(1), criterion.target_classes.raw)
    if not targeted and isinstance(criterion, Misclassification):
        return Batch(images, criterion.labels.raw)
    raise BilevelError(
        f"the criterion is {type(criterion).__name__}: the attack is "
        f"{'targeted' if targeted else 'untargeted'}; give the labels or Misclassification("
        "labels), or for a threat model with loss=targeted_cross_entropy "
        "TargetedMisclassification(targets)"
    )


def _check_bounds(model: Model, follower: Perturbation) -> None:
    """Checks that foolbox clips images to the bounds of the threat model."""
    bounds = (float(model.bounds.lower), float(model.bounds.upper))
    if not equal_bounds(follower.bounds, bounds):
        raise BilevelError(
            f"the foolbox model has bounds {tuple(model.bounds)} and the threat model "
            f"{interval(follower.bounds)}: foolbox would reject images that the attack finds; give "
            "lambda eps: Linf(eps, bounds=fmodel.bounds), or fmodel.transform_bounds((0, 1)), "
            "images and ε likewise"
        )


def _distance(follower: Perturbation) -> Distance:
    """The distance in foolbox of the threat model."""
    from foolbox.distances import l1, l2, linf

    for threat, distance in ((Linf, linf), (L2, l2), (L1, l1)):
        if isinstance(follower, threat):
            return distance
    raise BilevelError(
        f"{type(follower).__name__} is none of Linf, L2 and L1: foolbox clips what an attack "
        "returns to one of these balls; give a subclass of theirs"
    )
