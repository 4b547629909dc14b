"""The adversarial examples that a report shows."""

from __future__ import annotations

from bilevel import Solver
from bilevel.robustness import (
    EVALUATION_STEP,
    NORMS,
    Evaluation,
    Example,
    ImageSet,
    Perturbation,
    Trained,
    batches,
    examples,
    sample,
)
from bilevel.robustness.evaluation.problems import problem_of


def attacked(target: Trained, evaluation: Evaluation, test: ImageSet) -> list[Example]:
    """Figures 4 and 5: adversarial examples of three images, by the method's own attack too."""
    about, eps = target.about, evaluation.eps
    shown, ball = next(batches(sample(test, 3), 3)), NORMS[evaluation.norm](eps)
    attacks: dict[str, tuple[Perturbation, Solver]] = {
        "FGSM": (ball, ball.pgm(eps, 1)),
        "PGM-20": (ball, ball.pgm(EVALUATION_STEP * eps, 20)),
    }
    if about.method != "plain" and about.norm == evaluation.norm:
        own = target.solver if about.learned else about.solver().to(shown.x.device)
        if own is not None:  # a learned attacker's file may be missing
            attacks[f"own {about.method}"] = (about.follower(eps), own)
    found = []
    for title, (follower, solver) in attacks.items():
        try:
            found += examples(title, target.model, follower, solver, shown, test.classes)
        except Exception as error:
            print(f"{target.name}: no pictures of {title}: {problem_of(error)}")
    return found
