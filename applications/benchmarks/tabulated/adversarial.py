"""Accuracies of adversarially trained classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import mean, stdev

from bilevel.experiment.tables import markdown
from tabulated.reading import Record, per_cent, ranged, read, seeds

ATTACKS = {"clean": "clean", "pgm20": "PGM-20", "pgm100": "PGM-100"}

HAND_DESIGNED = {1: "fgsm", 2: "two-step-pgm", 3: "3-step-pgm", 10: "pgm"}
"""Hand-designed attackers by their number of steps."""

LEARNED = {1: "grad-l2l", 2: "two-step-l2l", 3: "3-step-l2l"}
"""Learned attackers by their number of steps."""

STEPPED = (*HAND_DESIGNED.values(), *LEARNED.values())

DEFAULT_RATE = 5e-4
"""The learning rate in results that do not tell it: that of the recipe for small images."""

Attacker = tuple[str, float | None]
"""A method, and its learning rate if it learns."""

Accuracies = Mapping[Attacker, Mapping[int, float]]
"""Accuracies by attacker and seed."""


def digits(results: str = "digits") -> str:
    """Accuracies and times on digits, three seeds."""
    return _training(seeds(f"{results}/seed-*"))


def digits_in_short() -> str:
    """The same without ranges, of fewer columns."""
    rows = []
    for runs in zip(*seeds("digits/seed-*"), strict=True):
        name = {"pgm": "pgm (10 steps)"}.get(runs[0]["method"], runs[0]["method"])
        accuracies = [f"{100 * mean(run[key] for run in runs):.1f}" for key in ATTACKS]
        rows.append([name, *accuracies, f"{mean(run['ratio_to_pgm'] for run in runs):.2f}"])
    return markdown(["method", *ATTACKS.values(), "training time ÷ PGM-10"], rows)


def cifar10() -> str:
    """CIFAR-10 as JPEG files, three seeds; the times of the others were taken under other load."""
    runs = [read(f"cifar10-jpeg75{seed}") for seed in ("", "-1", "-2")]
    return _training(runs, timed=1)


def cifar10_in_l2() -> str:
    """CIFAR-10 as JPEG files, one seed, beside other work."""
    return _training([read("cifar10-jpeg75-l2")])


def precisions(float32: Sequence[Record], bf16: Sequence[Record]) -> str:
    """Digits in float32 and in bf16, and how they differ, over seeds."""
    accuracies = {"clean": "clean", "pgm20": "PGM-20", "worst_case": "worst case"}
    rows = []
    for key, title in accuracies.items():
        exact, rounded = (_by_attacker(records, "digits", key) for records in (float32, bf16))
        for one in exact:
            shares = (per_cent([*found[one].values()]) for found in (exact, rounded))
            rows.append([one[0], title, *shares, _gain(exact, one, rounded, one)])
    return markdown(["method", "accuracy", "float32", "bf16", "bf16 − float32"], rows)


def schedules() -> str:
    """Accuracies of 2-Step L2L under each schedule."""
    order = [
        "simultaneous",
        "alternating",
        "extragradient",
        "optimistic",
        "lookahead",
        "proximal-point",
    ]
    rows = []
    for name in order:
        runs = [records[0] for records in seeds(f"digits-schedules/{name}-*")]
        rows.append([name, *(per_cent([run[key] for run in runs]) for key in ATTACKS)])
    return markdown(["schedule", *ATTACKS.values()], rows)


def through_the_attacker(records: Sequence[Record]) -> str:
    """Accuracies and cost of 2-Step L2L with two adjoints."""
    attacks = {**ATTACKS, "own_attacker": "own attacker"}
    cost = {"detached": 1.0, "unrolled": next(one["ratio"] for one in records if "ratio" in one)}
    rows = []
    for name, ratio in cost.items():
        runs = [one for one in records if one["method"] == name]
        accuracies = (per_cent([run[key] for run in runs]) for key in attacks)
        rows.append([f"`{name.capitalize()}()`", *accuracies, f"{ratio:.3g}"])
    return markdown(["adjoint", *attacks.values(), "CPU time of a step"], rows)


def learned_steps(records: Sequence[Record]) -> str:
    """The worst case of learned and hand-designed attackers, and how they differ, over seeds."""
    gains = "learned − hand-designed", "the same under PGM-20", "learned − ten steps"
    titles = "data", "steps", "hand-designed", "learned", "its rate", *gains
    rows = []
    for name in dict.fromkeys(one["dataset"] for one in records):
        worst, pgm20 = (_by_attacker(records, name, key) for key in ("worst_case", "pgm20"))
        for steps, method in HAND_DESIGNED.items():
            hand, ten, nobody = (method, None), (HAND_DESIGNED[10], None), ("", None)
            learned = sorted(one for one in worst if one[0] == LEARNED.get(steps))
            for one in learned or [nobody]:
                if hand in worst or one in worst:
                    shares = (per_cent([*worst.get(each, {}).values()]) for each in (hand, one))
                    rate = "–" if one[1] is None else f"{one[1]:g}"
                    gained = (_gain(found, hand, found, one) for found in (worst, pgm20))
                    ten_steps = _gain(worst, ten, worst, one)
                    rows.append([name, str(steps), *shares, rate, *gained, ten_steps])
    return markdown(list(titles), rows)


def warm_starts(anew: Sequence[Record], going_on: Sequence[Record]) -> str:
    """The worst case of attackers that start anew, and at their last answers, over seeds."""
    gains = "gain", "the same under PGM-20", "to ten steps anew", "to as many of PGM going on"
    designed = {LEARNED[steps]: HAND_DESIGNED[steps] for steps in LEARNED}
    titles = "data", "attacker", "its rate", "anew", "going on", *gains
    rows = []
    for name in dict.fromkeys(one["dataset"] for one in going_on):
        worst, pgm20 = (
            [_by_attacker(records, name, key) for records in (anew, going_on)]
            for key in ("worst_case", "pgm20")
        )
        for one in sorted(worst[1], key=lambda one: STEPPED.index(one[0])):
            rate = "–" if one[1] is None else f"{one[1]:g}"
            shares = (per_cent([*found.get(one, {}).values()]) for found in worst)
            gained = (_gain(before, one, after, one) for before, after in (worst, pgm20))
            to_ten = _gain(worst[0], (HAND_DESIGNED[10], None), worst[1], one)
            to_pgm = _gain(worst[1], (designed.get(one[0], ""), None), worst[1], one)
            rows.append([name, one[0], rate, *shares, *gained, to_ten, to_pgm])
    return markdown(list(titles), rows)


def attack_strength(records: Sequence[Record]) -> str:
    """The accuracy that each attacker leaves of its own classifier, and of PGM's."""
    rows = []
    for methods in (HAND_DESIGNED, LEARNED):
        for steps, method in methods.items():
            found = [one for one in records if one["method"] == method]
            shares = (per_cent([one[key] for one in found]) for key in ("pgm", "own"))
            rows.append([method, str(steps), *shares])
    titles = "attacker", "steps", "on the classifier of ten PGM steps", "on its own classifier"
    return markdown(list(titles), rows)


def _by_attacker(records: Sequence[Record], dataset: str, key: str) -> Accuracies:
    """The accuracies ``key`` of the classifiers that were trained with each attacker."""
    found: dict[Attacker, dict[int, float]] = {}
    for one in records:
        if one["dataset"] == dataset:
            learns = one["method"] in LEARNED.values()
            rate = one.get("attacker_lr", DEFAULT_RATE) if learns else None
            found.setdefault((one["method"], rate), {})[one["seed"]] = one[key]
    return found


def _gain(these: Accuracies, one: Attacker, those: Accuracies, other: Attacker) -> str:
    """What the other attacker gains over the one in points: mean and standard error over seeds."""
    before, after = these.get(one, {}), those.get(other, {})
    gains = [100 * (after[seed] - before[seed]) for seed in before.keys() & after.keys()]
    if len(gains) < 2:
        return "–"
    middle = round(mean(gains), 1) + 0.0  # no −0.0
    return f"{middle:+.1f} ± {stdev(gains) / sqrt(len(gains)):.1f}"


def _training(runs: Sequence[Sequence[Record]], timed: int | None = None) -> str:
    """Accuracies in per cent and times of training methods, over seeds; times of the first."""
    accuracies = {**ATTACKS, "own_attacker": "own attacker"}
    times = {"seconds_per_epoch": "s/epoch", "ratio_to_pgm": "÷ PGM"}
    rows = []
    for same_method in zip(*runs, strict=True):
        row = [same_method[0]["method"]]
        row += [per_cent([record[key] for record in same_method]) for key in accuracies]
        row += [ranged([record[key] for record in same_method[:timed]]) for key in times]
        rows.append(row)
    return markdown(["method", *accuracies.values(), *times.values()], rows)
