"""What attacks make of a classifier, item by item: does it look robust because attacks fail?

The items are those of Athalye et al. (2018), "Obfuscated gradients give a false sense of security",
Sec. 3.1, and Carlini et al. (2019), "On evaluating adversarial robustness", which the paper goes
through in Appendix D. Each is a function of the evaluation. What was not measured does not hold:
nobody has checked it.
"""

from __future__ import annotations

import numpy as np
import torch

from bilevel.robustness.attacks.attack import Kind, Role
from bilevel.robustness.evaluation.results import Curve, Evaluation, Finding, Outcome
from bilevel.robustness.evaluation.tolerance import breaks_more, share, tolerance


def _one_step(evaluation: Evaluation) -> Finding:
    """Attacks of one step break no more than the strongest of many steps, each on its own."""
    item = "one step breaks less than many"
    one, many = _strongest(evaluation, "one-step"), _strongest(evaluation, "iterative")
    if one is None or many is None:
        return _unchecked(item, "add fgsm and pgm-100 to the attacks")
    figure = f"{share(one.broken):.1%} broken, by many {share(many.broken):.1%}"
    good = f"{one.name} is no stronger than {many.name}."
    bad = (
        f"{one.name} breaks more than {many.name}, though more steps can only help: they lose "
        "their way, a sign of masked gradients. Attack the margin, with restarts."
    )
    return _finding(item, not breaks_more(one.broken, many.broken), figure, good, bad)


def _black_box(evaluation: Evaluation) -> Finding:
    """Attacks without gradients break nothing that attacks with gradients have left."""
    item = "black-box attacks add nothing"
    return _adds_nothing(
        item, evaluation, _sound(evaluation, "black-box"), "transfer, square or random"
    )


def _random_sampling(evaluation: Evaluation) -> Finding:
    """Random points of the ball break nothing that attacks with gradients have left."""
    blind = [o for o in _sound(evaluation, "black-box") if o.role == "random sampling"]
    return _adds_nothing("random sampling adds nothing", evaluation, blind, "random")


def _adds_nothing(item: str, evaluation: Evaluation, blind: list[Outcome], attacks: str) -> Finding:
    iterative = _sound(evaluation, "iterative")
    if not blind or not iterative:
        return _unchecked(item, f"add {attacks} to the attacks, and pgm-100 before")
    tried = torch.stack([outcome.attacked for outcome in iterative]).any(0)
    found = torch.stack([outcome.broken for outcome in blind]).any(0)
    found &= evaluation.survivors((*_sound(evaluation, "one-step"), *iterative))
    # Where a black-box attack came first, so that no other was tried, it proves nothing.
    none, missed = torch.zeros_like(found), found & tried
    if breaks_more(found, none) and not breaks_more(missed, none):
        return _unchecked(item, "run pgm-100 before them, or on every image")
    names = ", ".join(outcome.name for outcome in blind)
    good = f"What withstands attacks with gradients withstands those without ({names})."
    bad = (
        f"Attacks without gradients ({names}) break images that all attacks with gradients have "
        "left, a sign of masked gradients. Find out what masks them; the worst case is too high."
    )
    ok = not breaks_more(missed, none)
    return _finding(item, ok, f"{share(missed):.1%} of images", good, bad)


def _unbounded(evaluation: Evaluation) -> Finding:
    """With ε = 1 every image can be made any other, so that nothing is left."""
    item = "unbounded attacks break everything"
    curve = _curve(evaluation, "ε")
    if curve is None or curve.at[-1] < 1:
        return _unchecked(item, "measure the curve against ε")
    left = curve.accuracy[-1]
    bad = (
        "PGM-10 may make any image of any other and fails: what stops it is no robustness, here or "
        "at a smaller ε. Gradients are masked."
    )
    good = "PGM-10 breaks all images where any change is allowed."
    return _finding(item, left == 0, f"{left:.1%} left at ε = 1", good, bad)


def _larger_epsilon(evaluation: Evaluation) -> Finding:
    """Accuracy falls from the ε that is evaluated on, and rises nowhere."""
    item = "a larger ε breaks more"
    curve = _curve(evaluation, "ε")
    if curve is None:
        return _unchecked(item, "measure the curve against ε")
    accuracy = np.array(curve.accuracy)
    rise = float((accuracy - np.minimum.accumulate(accuracy)).max())
    start, end = _at(curve, evaluation.eps), curve.accuracy[-1]
    ok = not _counts(rise, curve) and (_counts(start - end, curve) or not _counts(start, curve))
    figure = f"{start:.1%} at ε = {evaluation.eps:g}, {end:.1%} at 1; rises by {_points(rise)}"
    bad = (
        "PGM-10 breaks no more where it may change more: it misses what is in its reach, a sign of "
        "masked gradients."
    )
    return _finding(item, ok, figure, "The more PGM-10 may change, the more it breaks.", bad)


def _converged(evaluation: Evaluation) -> Finding:
    """Twice as many iterations break no more."""
    item = "PGM has converged"
    curve = _curve(evaluation, "iterations")
    if curve is None or curve.at[-1] < 2 * curve.at[0]:
        return _unchecked(item, "measure the curve against iterations")
    half = max(i for i, iterations in enumerate(curve.at) if 2 * iterations <= curve.at[-1])
    fall = curve.accuracy[half] - curve.accuracy[-1]
    figure = f"falls by {_points(fall)} from {curve.at[half]:g} to {curve.at[-1]:g} iterations"
    bad = f"PGM breaks more with more iterations than {curve.at[-1]:g}: give attacks more of them."
    return _finding(item, not _counts(fall, curve), figure, "More iterations do not help.", bad)


def _cross_entropy(evaluation: Evaluation) -> Finding:
    """PGM finds something of what can be found: another loss may find more, not everything."""
    item = "cross entropy can be followed"
    pgm = _strongest(evaluation, "iterative", "cross entropy")
    if pgm is None:
        return _unchecked(item, "add pgm-100 to the attacks")
    left = evaluation.survivors(tuple(_sound(evaluation, "one-step", "iterative")))
    broken = evaluation.right & ~left
    # AIT's PGM-20 finds a third of what AutoAttack finds, which is a weak attack; a tenth is none.
    ok = not breaks_more(broken, pgm.broken) or share(pgm.broken) > 0.1 * share(broken)
    figure = f"{share(pgm.broken):.1%} broken, by all white-box attacks {share(broken):.1%}"
    bad = (
        f"{pgm.name} breaks next to nothing of what other white-box attacks break: the cross "
        "entropy's gradient is masked, by very large logits for instance."
    )
    return _finding(item, ok, figure, f"{pgm.name} has a gradient to follow.", bad)


def _radius(evaluation: Evaluation) -> Finding:
    """ε is no smaller than what the classifier was trained for, and large enough to matter."""
    item = "ε is large enough"
    eps, trained, curve = evaluation.eps, evaluation.trained_eps, _curve(evaluation, "ε")
    figure, bad = f"ε = {eps:g}", ""
    if trained is not None and eps < 0.95 * trained:  # 0.031 and 8/255 pass for the same ε
        bad = f"The classifier was trained for ε = {trained:g}: evaluate it with that."
    elif eps < 1 / 255:
        bad = "An image of bytes cannot change by less than 1/255: evaluate with that or more."
    elif curve is None:
        return _unchecked(item, "measure the curve against ε")
    else:
        fall = curve.accuracy[0] - _at(curve, 2 * eps)
        figure += f", with 2ε accuracy falls by {_points(fall)}"
        # Where no ε breaks anything the attack is to blame, which other items say.
        if not _counts(fall, curve) and _counts(curve.accuracy[0] - curve.accuracy[-1], curve):
            bad = "Twice as large an ε breaks nothing either: every classifier is robust there."
    return _finding(item, not bad, figure, "The attacks are given room.", bad)


def _complete(evaluation: Evaluation) -> Finding:
    """Every attack that was asked for gave a figure."""
    missing = [f"{o.name} ({o.problem})" for o in evaluation.outcomes if o.problem]
    figure = f"{len(evaluation.outcomes) - len(missing)} of {len(evaluation.outcomes)}"
    ok = bool(evaluation.outcomes) and not missing
    bad = f"Missing: {'; '.join(missing) or 'all'}."
    return _finding("every attack gave a figure", ok, figure, "No attack failed.", bad)


CHECKLIST = (
    _one_step,
    _black_box,
    _random_sampling,
    _unbounded,
    _larger_epsilon,
    _converged,
    _cross_entropy,
    _radius,
    _complete,
)
"""What is checked of the attacks, in the order of the report."""


def _finding(item: str, ok: bool, figure: str, good: str, bad: str) -> Finding:
    return Finding(item, ok, figure, good if ok else bad)


def _unchecked(item: str, remedy: str) -> Finding:
    return Finding(item, False, "not measured", f"Nobody has checked it: {remedy}.")


def _sound(evaluation: Evaluation, *kinds: Kind) -> list[Outcome]:
    """The outcomes of some kinds that gave a figure."""
    return [o for o in evaluation.outcomes if o.kind in kinds and not o.problem]


def _strongest(evaluation: Evaluation, kind: Kind, role: Role | None = None) -> Outcome | None:
    """The attack of a kind, and of a role where one is given, that breaks most on its own."""
    alone = [o for o in _sound(evaluation, kind) if evaluation.alone(o) is not None]
    chosen = [o for o in alone if role in (None, o.role)]
    return max(chosen, key=lambda outcome: share(outcome.broken), default=None)


def _curve(evaluation: Evaluation, quantity: str) -> Curve | None:
    return next((curve for curve in evaluation.curves if curve.quantity == quantity), None)


def _at(curve: Curve, where: float) -> float:
    return float(np.interp(where, curve.at, curve.accuracy))


def _counts(difference: float, curve: Curve) -> bool:
    """Whether a fall or rise along a curve is beyond the tolerance."""
    # What an attack breaks it also breaks with more of ε or time, nearly: the discordant images are
    # the difference itself.
    return difference > tolerance(max(difference, 0), curve.images)


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"
