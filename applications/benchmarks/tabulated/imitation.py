"""Returns of imitators."""

from __future__ import annotations

import math

from scipy.stats import mannwhitneyu

from bilevel.experiment.tables import markdown, mean_std
from tabulated.reading import Record, read, significant

NAMES = {
    "gail": "GAIL",
    "l2l-gail": "L2L-GAIL, coordinate",
    "bc": "behaviour cloning",
    "constant": "constant D",
}

CONTROLS = "bc", "constant"
"""They come last."""

LONG = (
    "gail-long", "gail-long-ball", "gail-cartpole", "gail-dense", "gail-dense-1",
    "gail-long-control",
)  # fmt: skip
"""The results of 700 iterations."""


def ten_demonstrations() -> str:
    """Returns of the final policies, and when they were near the expert's."""
    environments = read("gail-mountaincar"), read("gail-pendulum")
    rows = [["expert"]]
    for records in environments:
        rows[0] += [mean_std([records[0]["expert"]], 1), ""]
    for method, name in NAMES.items():
        row = [name]
        for records in environments:
            runs = [one for one in records if one["method"] == method]
            row += [mean_std([one["return"] for one in runs], 1), _near(runs)]
        rows.append(row)
    titles = "MountainCar, `--reward neutral`", "near after", "Pendulum", "near after"
    return markdown(["", *titles], rows)


def _near(runs: list[Record]) -> str:
    if runs[0]["method"] == "bc":
        return "–"
    reached = [one["reached"] for one in runs if one["reached"] is not None]
    when = f"{min(reached)} to {max(reached)}, " if reached else ""
    return f"{when}{len(reached)} of {len(runs)} seeds"


def steadiness(env: str) -> str:
    """How soon and how steady the methods are near the expert, beside L2L-GAIL by a rank test."""
    found = read(f"gail-{env}")
    learned = [one for one in found if one["method"] == "l2l-gail"]
    kinds = {
        "GAIL, five steps of Adam": [one for one in found if one["method"] == "gail"],
        "GAIL, one step of Adam": read(f"gail-{env}-one-step"),
        "L2L-GAIL, coordinate": learned,
        "L2L-GAIL, the updater not trained": read(f"gail-{env}-gradient"),
    }
    return _ranked(kinds, learned)


def settings_of_ho_ermon(results: str) -> str:
    """700 iterations with one demonstration and the settings of Ho & Ermon."""
    found = read(results)
    learned = [one for one in found if one["method"] == "l2l-gail"]
    kinds = {
        "GAIL": [one for one in found if one["method"] == "gail"],
        "L2L-GAIL, coordinate": learned,
        "L2L-GAIL, dense, by steps of 1e-5": read(f"{results}-dense-rate"),
        "L2L-GAIL, dense, by steps of 1e-6": read(f"{results}-dense"),
        "L2L-GAIL, the updater not trained": read(f"{results}-gradient"),
        "constant D": read(f"{results}-constant"),
    }
    return _ranked(kinds, learned)


def _ranked(kinds: dict[str, list[Record]], learned: list[Record]) -> str:
    """A row of each kind of runs, beside L2L-GAIL by a rank test."""
    rows = []
    for kind, runs in kinds.items():
        if not runs:
            continue
        row = [kind, _near(runs), _rank_test(runs, learned, "reached")]
        for name, decimals in (("return", 1), ("worst_after", 0)):
            values = [one[name] for one in runs if one[name] is not None]
            row += [mean_std(values, decimals), mean_std([min(values)], 0)]
            row.append(_rank_test(runs, learned, name))
        rows.append(row)
    titles = "final return", "worst run", "p", "worst ten iterations since *near*", "worst run", "p"
    return markdown(["", "near after", "p", *titles], rows)


def _rank_test(runs: list[Record], others: list[Record], name: str) -> str:
    """The p-value of Mann and Whitney, two-sided; a run that was never near ranks last."""
    if runs is others:
        return "–"
    never = math.inf if name == "reached" else -math.inf
    values = [
        [never if one[name] is None else one[name] for one in each] for each in (runs, others)
    ]
    return significant(float(mannwhitneyu(*values).pvalue), 1)


def one_demonstration(env: str) -> str:
    """700 iterations with one demonstration, of which every 20th pair is used."""
    kinds: dict[str, list[Record]] = {}
    for one in (one for name in LONG for one in read(name) if one["env"] == env):
        kinds.setdefault(_kind(one), []).append(one)
    columns = {
        "final return": ("return", 1),
        "worst ten iterations after *near*": ("worst_after", 0),
        "‖θ_D‖, 8.7 at first": ("norm", 0),
        "accuracy of D": ("accuracy", 2),
    }
    rows = []
    for kind, runs in sorted(kinds.items(), key=lambda item: item[1][0]["method"] in CONTROLS):
        row = [kind, str(len(runs))]
        for name, decimals in columns.values():
            known = [one[name] for one in runs if one.get(name) is not None]
            row.append(mean_std(known, decimals))
        rows.append(row)
    return markdown(["", "seeds", *columns], rows)


def _kind(one: Record) -> str:
    if one["method"] != "l2l-gail":
        return NAMES[one["method"]]
    bound = one["max_norm"]
    return f"L2L-GAIL, {one['updater']}" + (f", `--max-norm {bound:.0f}`" if bound else "")


def updaters() -> str:
    """Size and time of the learned updaters of CartPole's discriminator."""
    networks = {
        "coordinate": "4 → 32 → 16 → 1, applied to each weight of D separately",
        "block": "2b → 8b → 4b → b for blocks of b = 16 weights",
        "dense": "the paper's 2m → 8m → 4m → m",
    }
    rows = [
        [
            f"`{one['updater']}`",
            networks[one["updater"]],
            f"{one['parameters']:,}",
            significant(one["update, ms"], 2),
            significant(one["with training, ms"], 2),
        ]
        for one in read("imitation")
        if "updater" in one
    ]
    size = "parameters for CartPole's m = 2,561"
    return markdown(["`--updater`", "network", size, "update, ms", "with its training, ms"], rows)
