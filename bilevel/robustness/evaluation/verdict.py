"""Whether the accuracies of an evaluation can be trusted, and which must not be quoted."""

from __future__ import annotations

from collections.abc import Sequence

from bilevel.robustness.evaluation.checklist import CHECKLIST
from bilevel.robustness.evaluation.results import Evaluation, Finding
from bilevel.robustness.evaluation.tolerance import exceeds


def judge(evaluation: Evaluation, probed: Sequence[Finding]) -> tuple[Finding, ...]:
    """Applies the checklist.

    Args:
        evaluation: The results of the attacks, and the curves.
        probed: The findings of :func:`~bilevel.robustness.probe`.

    Returns:
        The findings of the probes, then those of the attacks; without the items that only a ball
        has, if the evaluation names another threat model.

    Example:
        >>> evaluation = Evaluation("pgm", 0.2, 0.2, torch.ones(4).bool())
        >>> sorted({finding.figure for finding in judge(evaluation, [])})
        ['0 of 0', '4 images', 'not measured']
    """
    return *probed, *filter(None, (check(evaluation) for check in CHECKLIST))


def headline(evaluation: Evaluation) -> str:
    """The verdict in a sentence.

    Args:
        evaluation: An evaluation with its findings.

    Returns:
        The worst case, and the checks that failed.

    Example:
        >>> right = torch.ones(4).bool()
        >>> headline(Evaluation("pgm", 0.2, 0.2, right, findings=(Finding("ε", True, "", ""),)))
        'Trustworthy: 100.0% of 4 images withstand every attack at ε = 0.2 (clean 100.0%).'
    """
    figure = (
        f"{evaluation.worst_case:.1%} of {len(evaluation.right)} images withstand every attack at "
        f"{evaluation.radius} (clean {evaluation.clean:.1%})"
    )
    if evaluation.trustworthy:
        return f"Trustworthy: {figure}."
    if not evaluation.findings:
        return f"Not trustworthy: {figure}, because nothing has been checked."
    failed = [finding for finding in evaluation.findings if not finding.ok]
    named = "; ".join(f"{finding.item} ({finding.figure})" for finding in failed)
    number = f"{len(failed)} of {len(evaluation.findings)}"
    return f"Not trustworthy: {figure}, because {number} checks failed: {named}."


def not_to_be_quoted(evaluation: Evaluation) -> tuple[str, ...]:
    """The accuracies that overstate robustness.

    Args:
        evaluation: The evaluation.

    Returns:
        A line for each attack whose own accuracy is above the worst case by more than the
        tolerance.
    """
    broken = evaluation.right & ~evaluation.survivors(evaluation.outcomes)
    return tuple(
        f"{accuracy:.1%} under {outcome.name}: other attacks break more; quote the worst case, "
        f"{evaluation.worst_case:.1%}."
        for outcome in evaluation.outcomes
        if (accuracy := evaluation.alone(outcome)) is not None and exceeds(broken, outcome.broken)
    )
