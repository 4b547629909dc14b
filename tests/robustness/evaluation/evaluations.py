"""The evaluation of a robust classifier, and others that differ from it in one thing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bilevel.robustness import Curve, Evaluation, Finding, Outcome
from bilevel.robustness.attacks.attack import Kind, Role
from bilevel.robustness.evaluation.verdict import judge

N = 1000
EPSILONS = (0.0, 0.1, 0.2, 0.4, 1.0)
ITERATIONS = (1, 10, 20, 50, 100)


def images(*spans: tuple[int, int]) -> Tensor:
    """Which of the images lie in one of the spans."""
    rows = torch.arange(N)
    return sum(((rows >= a) & (rows < b) for a, b in spans), torch.zeros(N).bool())


RIGHT = images((0, 900))


def outcome(
    name: str, kind: Kind, *broken: tuple[int, int], attacked: Tensor = RIGHT, role: Role = ""
) -> Outcome:
    return Outcome(name, kind, attacked, images(*broken) & attacked, 1.0, role=role)


def ascent(name: str, *broken: tuple[int, int]) -> Outcome:
    return outcome(name, "iterative", *broken, role="cross entropy")


def sampling(*broken: tuple[int, int], attacked: Tensor = RIGHT) -> Outcome:
    return outcome("noise", "black-box", *broken, attacked=attacked, role="random sampling")


def longer(*broken: tuple[int, int], attacked: Tensor) -> Outcome:
    return outcome("300 steps", "iterative", *broken, attacked=attacked, role="spot check")


def sound(**changes: object) -> Evaluation:
    """What is seen of a robust classifier."""
    evaluation = Evaluation(
        "pgm",
        eps=0.2,
        trained_eps=0.2,
        right=RIGHT,
        outcomes=(
            outcome("FGSM", "one-step", (0, 200)),
            ascent("PGM-20", (0, 302)),
            ascent("PGM-100", (0, 305)),
            outcome("PGM-100 margin", "iterative", (305, 315), attacked=images((305, 900))),
            longer(attacked=images((315, 415))),
            outcome("FGSM on pgm-1", "black-box", (0, 100)),
            sampling((315, 320), attacked=images((315, 900))),
        ),
        curves=(
            Curve("ε", EPSILONS, (0.9, 0.8, 0.6, 0.1, 0.0), N),
            Curve("iterations", ITERATIONS, (0.88, 0.65, 0.6, 0.597, 0.595), N),
        ),
    )
    return replace(evaluation, **changes)  # type: ignore[arg-type]


def failed(evaluation: Evaluation) -> dict[str, Finding]:
    return {finding.item: finding for finding in judge(evaluation, []) if not finding.ok}


def with_outcome(name: str, *broken: tuple[int, int]) -> Evaluation:
    """One of the attacks breaks other images."""
    evaluation = sound()
    changed = [
        outcome(o.name, o.kind, *broken, attacked=o.attacked, role=o.role) if o.name == name else o
        for o in evaluation.outcomes
    ]
    return replace(evaluation, outcomes=tuple(changed))


def without(*names: str) -> Evaluation:
    evaluation = sound()
    kept = tuple(o for o in evaluation.outcomes if o.name not in names)
    return replace(evaluation, outcomes=kept)


def with_curve(quantity: str, *accuracy: float) -> Evaluation:
    at = EPSILONS if quantity == "ε" else ITERATIONS
    other = next(curve for curve in sound().curves if curve.quantity != quantity)
    return sound(curves=(Curve(quantity, at, accuracy, N), other))


def unbroken(evaluation: Evaluation) -> Evaluation:
    """With attacks that break nothing."""
    return replace(
        evaluation, outcomes=tuple(replace(o, broken=images()) for o in evaluation.outcomes)
    )
