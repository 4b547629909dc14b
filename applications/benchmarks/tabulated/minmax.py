"""Learned followers, the monitor, and what a schedule costs."""

from __future__ import annotations

from collections.abc import Sequence

from bilevel.experiment.tables import markdown
from tabulated.reading import Record, read, significant


def learned_follower() -> str:
    """Distances to the equilibrium in unseen bilinear games, over all seeds."""
    methods = {
        "gda": "gradient descent–ascent",
        "alternating": "alternating",
        "optimistic": "optimistic, both players",
        "extragradient": "extragradient, both players",
        "one-sided optimistic": "optimistic, the follower only",
        "learned": "**learned, the follower only**",
        "α = 1/2, β = 10": "hand-designed: η (½ g + 10 Δg)",
    }
    plays = {
        one["method"]: one
        for one in read("learned_follower")
        if one["record"] == "play" and (one["setting"], one["seed"]) == ("bilinear", None)
    }
    rows = []
    for method, name in methods.items():
        one = plays[method]
        ends = (_distance(one[f"distance_at_end{part}"]) for part in ("", "_q25", "_q75"))
        middle, low, high = ends
        rows.append(
            [
                name,
                f"{middle} [{low}, {high}]",
                f"{one['factor']:.4f}",
                f"{100 * one['converged']:.0f} %",
            ]
        )
    titles = "final ÷ initial distance, median [quartiles]", "factor per step"
    return markdown(["bilinear games", *titles, "converged (< 1e-3)"], rows)


def _distance(ratio: float) -> str:
    return significant(ratio, 1 if ratio < 1e-3 else 2)


def monitor(records: Sequence[Record]) -> str:
    """What an observation costs beside a step."""
    networks = {
        "linear": "linear, 64 pixels, FGSM",
        "small-cnn": "small CNN, learned attacker",
        "resnet18": "ResNet-18, learned attacker",
    }
    rows = [
        [
            networks[one["network"]],
            significant(one["step_ms"], 2),
            significant(one["observe_ms"], 2),
            f"{significant(one['share_percent'], 2)} %",
        ]
        for one in records
    ]
    return markdown(["network", "step, ms", "observation, ms", "share of a step"], rows)


def schedules(records: Sequence[Record], games: int) -> str:
    """A step of f = xy beside a loop written by hand and beside cooper."""
    rows = [
        [
            one["schedule"].replace("proximal-point", "proximal point, 5 iterations"),
            significant(one["by hand, µs"], 3),
            significant(one["bilevel, µs"], 3),
            f"{one['÷ by hand']:.2f}",
            f"{one['cooper, µs']:.0f}" if "cooper, µs" in one else "–",
            significant(1 / one["games at once, ÷ one"], 2),
        ]
        for one in records
    ]
    titles = "by hand, µs", "bilevel, µs", "÷ by hand", "cooper 1.0.1, µs"
    stacked = f"speed-up per game with {games:,} stacked games"
    return markdown(["schedule", *titles, stacked], rows)


def network_games(records: Sequence[Record]) -> str:
    """A step between two networks beside a simultaneous one."""
    widths = dict.fromkeys(one["width"] for one in records)
    cells = {(one["schedule"], one["width"]): one["÷ simultaneous"] for one in records}
    rows = [
        [
            name.replace("proximal-point", "proximal point, 5 iterations"),
            *(f"{cells[name, width]:.2f}" for width in widths),
        ]
        for name in dict.fromkeys(one["schedule"] for one in records)
    ]
    return markdown(["schedule", *(f"width {width}" for width in widths)], rows)
