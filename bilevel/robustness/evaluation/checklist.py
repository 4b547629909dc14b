"""The checklist: signs in the results of attacks that the attacks, not the model, are at fault.

The items are those of Athalye et al. (2018), "Obfuscated gradients give a false sense of security",
Sec. 3.1, and Carlini et al. (2019), "On evaluating adversarial robustness", which the paper goes
through in Appendix D. Each is a function of the evaluation. An item that was not measured fails.
"""

from __future__ import annotations

import numpy as np
import torch

from bilevel.robustness.attacks.attack import Kind, Role
from bilevel.robustness.evaluation.results import (
    Curve,
    Evaluation,
    Finding,
    Outcome,
    finding,
    not_measured,
)
from bilevel.robustness.evaluation.tolerance import exceeds, share, tolerance

# The worst case then has a standard error of 5 points at most; on 16 images it has 13.
_ENOUGH_IMAGES = 100


def _one_step(evaluation: Evaluation) -> Finding:
    """The strongest one-step attack breaks no more images than the strongest iterative one."""
    item = "one step breaks less than many"
    one, many = _strongest(evaluation, "one-step"), _strongest(evaluation, "iterative")
    if one is None or many is None:
        return not_measured(item, "add fgsm and pgm-100 to the attacks")
    figure = f"{share(one.broken):.1%} broken, by many {share(many.broken):.1%}"
    good = f"{one.name} is no stronger than {many.name}."
    bad = (
        f"{one.name} breaks more than {many.name}, though more steps should only help: a sign of "
        "masked gradients. Attack the margin, with restarts."
    )
    return finding(item, not exceeds(one.broken, many.broken), figure, good, bad)


def _black_box(evaluation: Evaluation) -> Finding:
    """Black-box attacks break no image that gradient-based attacks do not."""
    black_box = _designed(evaluation, "black-box")
    # Masked gradients hide much more than random points find: these alone show nothing.
    if all(outcome.role == "random sampling" for outcome in black_box):
        black_box = []
    attacks = "square or transfer" if evaluation.norm in ("linf", "l2") else "transfer"
    return _adds_nothing("black-box attacks add nothing", evaluation, black_box, attacks)


def _random_sampling(evaluation: Evaluation) -> Finding:
    """Random points of the ball break no image that gradient-based attacks do not."""
    sampling = [o for o in _completed(evaluation, "black-box") if o.role == "random sampling"]
    return _adds_nothing("random sampling adds nothing", evaluation, sampling, "random")


def _adds_nothing(
    item: str, evaluation: Evaluation, black_box: list[Outcome], attacks: str
) -> Finding:
    iterative = _designed(evaluation, "iterative")
    if not black_box or not iterative:
        return not_measured(item, f"add {attacks} to the attacks, and pgm-100 before")
    tried = torch.stack([outcome.attacked for outcome in iterative]).any(0)
    added = torch.stack([outcome.broken for outcome in black_box]).any(0)
    added &= evaluation.survivors(tuple(_completed(evaluation, "one-step", "iterative")))
    # An image that a black-box attack broke before any iterative one saw it proves nothing.
    none, missed = torch.zeros_like(added), added & tried
    if exceeds(added, none) and not exceeds(missed, none):
        return not_measured(item, "run pgm-100 before them, or on every image")
    names = ", ".join(outcome.name for outcome in black_box)
    good = f"Images that withstand gradient-based attacks withstand black-box ones ({names})."
    bad = (
        f"Black-box attacks ({names}) break images that no gradient-based attack breaks, a sign of "
        "masked gradients. Find out what masks them; the worst case is too high."
    )
    ok = not exceeds(missed, none)
    return finding(item, ok, f"{share(missed):.1%} of images", good, bad)


def _unbounded(evaluation: Evaluation) -> Finding | None:
    """Where every image is within reach, at ε = 1 in L∞, no accuracy is left but by chance."""
    if evaluation.threat:  # no ball: no ε is known to bring every image in reach
        return None
    item = "unbounded attacks break everything"
    curve = _curve(evaluation, "ε")
    if curve is None or curve.at[-1] < 1:
        return _no_curve(item, evaluation, "ε")
    left = curve.accuracy[-1]
    bad = (
        "PGM-10 fails although every image is within its reach, so its failure at a smaller ε does "
        "not show robustness either. Gradients are masked."
    )
    good = "PGM-10 breaks every image, or all but a few, if any change is allowed."
    ok = not _is_significant(left, curve)
    return finding(item, ok, f"{left:.1%} left at ε = {curve.at[-1]:.3g}", good, bad)


def _larger_epsilon(evaluation: Evaluation) -> Finding:
    """Accuracy falls beyond the evaluated ε, unless none is left there, and never rises."""
    item = "a larger ε breaks more"
    curve = _curve(evaluation, "ε")
    if curve is None:
        return _no_curve(item, evaluation, "ε")
    accuracy = np.array(curve.accuracy)
    rise = float((accuracy - np.minimum.accumulate(accuracy)).max())
    start, end = _accuracy_at(curve, evaluation.eps), curve.accuracy[-1]
    falls = _is_significant(start - end, curve) or not _is_significant(start, curve)
    ok = falls and not _is_significant(rise, curve)
    figure = f"{start:.1%} at ε = {evaluation.eps:.3g}, {end:.1%} at {curve.at[-1]:.3g}; "
    figure += f"rises by {_points(rise)}"
    bad = (
        "PGM-10 does not break more at a larger ε: it misses adversarial images within its reach, "
        "a sign of masked gradients."
    )
    return finding(item, ok, figure, "PGM-10 breaks more at a larger ε.", bad)


def _converged(evaluation: Evaluation) -> Finding:
    """Twice as many iterations break no more."""
    item = "PGM has converged"
    curve = _curve(evaluation, "iterations")
    if curve is None or curve.at[-1] < 2 * curve.at[0]:
        return _no_curve(item, evaluation, "iterations")
    half = max(i for i, iterations in enumerate(curve.at) if 2 * iterations <= curve.at[-1])
    fall = curve.accuracy[half] - curve.accuracy[-1]
    figure = f"falls by {_points(fall)} from {curve.at[half]:g} to {curve.at[-1]:g} iterations"
    bad = f"PGM would break more with more than {curve.at[-1]:g} iterations: give attacks more."
    ok = not _is_significant(fall, curve)
    return finding(item, ok, figure, "More iterations do not help.", bad)


def _longer(evaluation: Evaluation) -> Finding:
    """A longer attack, on a sample of the images that others leave, breaks next to none."""
    item = "longer attacks add nothing"
    checks = _spot_checks(evaluation)
    if not checks:
        return not_measured(item, "add longer to the attacks, after the others that iterate")
    check = max(checks, key=_part_broken)
    tried, broken = int(check.attacked.sum()), int(check.broken.sum())
    if not tried:
        return Finding(item, True, "no image is left", "Shorter attacks break every image.")
    # Each image of the sample stands for several that it was drawn from.
    left = evaluation.so_far(check) + share(check.broken)
    added = left * broken / tried
    ok = added <= tolerance(added, round(tried / left))
    figure = f"{broken} of {tried} broken, as much as {_points(added)}"
    bad = (
        f"{check.name} breaks images that shorter attacks leave: they have not converged, and the "
        "worst case is too high. Give them more steps."
    )
    return finding(item, ok, figure, f"{check.name} breaks next to nothing more.", bad)


def _cross_entropy(evaluation: Evaluation) -> Finding:
    """PGM on the cross entropy breaks a tenth at least of what all white-box attacks break."""
    item = "cross entropy can be followed"
    pgm = _strongest(evaluation, "iterative", "cross entropy")
    if pgm is None:
        return not_measured(item, "add pgm-100 to the attacks")
    survivors = evaluation.survivors(tuple(_completed(evaluation, "one-step", "iterative")))
    broken = evaluation.right & ~survivors
    # On AIT, PGM-20 finds a third of what AutoAttack finds: weak, but not masked.
    ok = not exceeds(broken, pgm.broken) or share(pgm.broken) > 0.1 * share(broken)
    figure = f"{share(pgm.broken):.1%} broken, by all white-box attacks {share(broken):.1%}"
    bad = (
        f"{pgm.name} breaks next to nothing of what other white-box attacks break: the cross "
        "entropy's gradient is masked, by very large logits for instance."
    )
    good = f"Attacks on other losses do not leave {pgm.name} far behind."
    return finding(item, ok, figure, good, bad)


def _radius(evaluation: Evaluation) -> Finding:
    """ε is at least the one of training, and large enough that it, or 2ε, breaks something."""
    item, eps, trained = "ε is large enough", evaluation.eps, evaluation.trained_eps
    figure, curve = f"ε = {eps:.3g}", _curve(evaluation, "ε")
    if trained is not None and eps < 0.95 * trained:  # 0.031 and 8/255 count as the same ε
        bad = f"The classifier was trained for ε = {trained:g}: evaluate it with that."
        return Finding(item, False, figure, bad)
    if eps < 1 / 255 and not evaluation.threat:
        bad = "An 8-bit image cannot change by less than 1/255: evaluate with that or more."
        return Finding(item, False, figure, bad)
    if curve is None:
        return _no_curve(item, evaluation, "ε")
    fall = curve.accuracy[0] - _accuracy_at(curve, 2 * eps)
    figure += f", with 2ε accuracy falls by {_points(fall)}"
    # If not even the largest ε breaks anything, the attack is at fault: other items tell.
    if not _is_significant(curve.accuracy[0] - curve.accuracy[-1], curve):
        good = "No larger ε breaks more either: the size of ε is not the reason."
        return Finding(item, True, figure, good)
    broken = evaluation.right & ~evaluation.survivors(evaluation.outcomes)
    ok = exceeds(broken, torch.zeros_like(broken)) or _is_significant(fall, curve)
    good = "ε is large enough for attacks to succeed."
    bad = "Not even 2ε breaks anything: at this ε every classifier looks robust."
    return finding(item, ok, figure, good, bad)


def _enough_images(evaluation: Evaluation) -> Finding:
    """There are so many images that the other items, which allow for chance, can fail."""
    images = len(evaluation.right)
    good = "On so many images chance hides no large difference."
    bad = (
        f"On {images} images nearly any difference may be chance, so that other items pass "
        f"whatever they look at: attack {_ENOUGH_IMAGES} or more."
    )
    return finding("enough images", images >= _ENOUGH_IMAGES, f"{images} images", good, bad)


def _complete(evaluation: Evaluation) -> Finding:
    """Every requested attack gave a figure."""
    missing = [f"{o.name} ({o.problem})" for o in evaluation.outcomes if o.problem]
    figure = f"{len(evaluation.outcomes) - len(missing)} of {len(evaluation.outcomes)}"
    ok = bool(evaluation.outcomes) and not missing
    bad = f"Missing: {'; '.join(missing) or 'all'}."
    return finding("every attack gave a figure", ok, figure, "No attack failed.", bad)


CHECKLIST = (
    _one_step,
    _black_box,
    _random_sampling,
    _unbounded,
    _larger_epsilon,
    _converged,
    _longer,
    _cross_entropy,
    _radius,
    _enough_images,
    _complete,
)
"""The items, in the order of the report; one that gives None does not apply."""


def _no_curve(item: str, evaluation: Evaluation, quantity: str) -> Finding:
    problems = [one.problem for one in evaluation.curves if one.quantity == quantity]
    return not_measured(item, "; ".join(problems) or f"measure the curve against {quantity}")


def _completed(evaluation: Evaluation, *kinds: Kind) -> list[Outcome]:
    """The outcomes of some kinds that gave a figure, but for spot checks."""
    completed = [o for o in evaluation.outcomes if o.kind in kinds and not o.problem]
    return [outcome for outcome in completed if outcome.role != "spot check"]


def _designed(evaluation: Evaluation, kind: Kind) -> list[Outcome]:
    """Those that were not trained."""
    # A classifier may have learned to withstand an attacker, and most gradient-based attacks have
    # not seen the images that one breaks without a gradient.
    return [one for one in _completed(evaluation, kind) if one.role != "learned"]


def _spot_checks(evaluation: Evaluation) -> list[Outcome]:
    """Those that gave a figure, of what an iterative attack had left."""
    done = [o for o in evaluation.outcomes if o.role == "spot check" and not o.problem]
    iterative = _designed(evaluation, "iterative")
    return [o for o in done if any(one in evaluation.before(o) for one in iterative)]


def _part_broken(outcome: Outcome) -> float:
    return share(outcome.broken) / max(share(outcome.attacked), 1 / len(outcome.attacked))


def _strongest(evaluation: Evaluation, kind: Kind, role: Role | None = None) -> Outcome | None:
    """Of those of a kind, and role if given, that ran on all images, the strongest."""
    alone = [o for o in _designed(evaluation, kind) if evaluation.alone(o) is not None]
    chosen = [o for o in alone if role in (None, o.role)]
    return max(chosen, key=lambda outcome: share(outcome.broken), default=None)


def _curve(evaluation: Evaluation, quantity: str) -> Curve | None:
    return next((curve for curve in evaluation.measured if curve.quantity == quantity), None)


def _accuracy_at(curve: Curve, where: float) -> float:
    return float(np.interp(where, curve.at, curve.accuracy))


def _is_significant(difference: float, curve: Curve) -> bool:
    """Whether a fall or rise along a curve is beyond the tolerance."""
    # An image that an attack breaks stays broken, nearly always, at a larger ε or with more
    # iterations: the share of discordant images is the difference itself.
    return difference > tolerance(max(difference, 0), curve.images)


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"
