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
from bilevel.robustness.evaluation.logits import logits_of
from bilevel.robustness.evaluation.problems import problem_of


def attacked(target: Trained, evaluation: Evaluation, test: ImageSet) -> list[Example]:
    """Figures 4 and 5: adversarial examples of three images, by the method's own attack too.

    Of images that are classified correctly, if there are any among the first that are drawn.
    """
    about, eps = target.about, evaluation.eps
    drawn = sample(test, 64)
    right = logits_of(target.model, drawn).argmax(1) == drawn.labels
    shown = next(batches(sample(drawn.subset(right) if right.any() else drawn, 3), 3))
    ball = NORMS[evaluation.norm](eps)
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
