"""An evaluation as flat records, for ``results.json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bilevel.robustness.evaluation.results import Evaluation


def records(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The records of one classifier.

    Args:
        evaluation: The classifier.

    Returns:
        Records of four kinds, named by their key ``record``, one ``summary``, an ``attack`` for
        each attack, a ``finding`` for each item of the checklist, and a ``curve`` for each point.

    Example:
        >>> one = Evaluation("pgm", 0.2, 0.2, torch.tensor([True, False]))
        >>> records(one)[0]["clean"]
        0.5
    """
    summary = {
        "norm": evaluation.norm,
        "epsilon": evaluation.eps,
        "trained_epsilon": evaluation.trained_eps,
        "images": len(evaluation.right),
        "clean": evaluation.clean,
        "worst_case": evaluation.worst_case,
        "trustworthy": evaluation.trustworthy,
    }
    attacks = [
        {
            "attack": outcome.name,
            "kind": outcome.kind,
            "attacked": int(outcome.attacked.sum()),
            "broken": int(outcome.broken.sum()),
            "alone": evaluation.alone(outcome),
            "worst_case_so_far": evaluation.so_far(outcome),
            "seconds": outcome.seconds,
            "problem": outcome.problem,
        }
        for outcome in evaluation.outcomes
    ]
    points = [
        {"quantity": curve.quantity, "at": at, "accuracy": accuracy}
        for curve in evaluation.curves
        for at, accuracy in zip(curve.at, curve.accuracy, strict=True)
    ]
    kinds: dict[str, list[dict[str, Any]]] = {
        "summary": [summary],
        "attack": attacks,
        "finding": list(map(asdict, evaluation.findings)),
        "curve": points,
    }
    return [
        {"record": kind, "classifier": evaluation.name, **record}
        for kind, group in kinds.items()
        for record in group
    ]
