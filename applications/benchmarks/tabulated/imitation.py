"""Returns of imitators."""

from __future__ import annotations

from bilevel.experiment.tables import markdown, mean_std
from tabulated.reading import Record, read, significant

NAMES = {
    "gail": "GAIL",
    "l2l-gail": "L2L-GAIL, coordinate",
    "bc": "behaviour cloning",
    "constant": "constant D",
}


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


def one_demonstration() -> str:
    """700 iterations with seven pairs."""
    long, ball, control = map(read, ("gail-long", "gail-long-ball", "gail-long-control"))
    kinds = {
        "GAIL": [one for one in long if one["method"] == "gail"],
        "L2L-GAIL, coordinate": [one for one in long if one["method"] == "l2l-gail"],
        "the same, `--max-norm 15` (four seeds)": ball,
        "constant D (two seeds)": [one for one in control if one["method"] == "constant"],
    }
    rows = [
        [
            name,
            mean_std([one["return"] for one in runs], 1),
            mean_std([one["worst_after"] for one in runs], 0),
            mean_std([one["norm"] for one in runs], 0),
            f"{sum(one['accuracy'] for one in runs) / len(runs):.2f}",
        ]
        for name, runs in kinds.items()
    ]
    titles = "final return", "worst ten iterations after *near*", "‖θ_D‖, 8.7 at first"
    return markdown(["", *titles, "accuracy of D"], rows)


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
