"""Writes the tables of the documentation from the committed results.

    python applications/benchmarks/tables.py

A table stands between ``<!-- table NAME: begin -->`` and ``<!-- table NAME: end -->``; the tests
compare each with its results.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tabulated import adversarial, costs, hypergradients, imitation, minmax
from tabulated.reading import Record, read

ROOT = Path(__file__).parents[2]

LEARNED_STEPS = (
    "digits",
    "digits-rate",
    "fashion-mnist",
    "fashion-mnist-halved",
    "fashion-mnist-halved-rate",
    "fashion-mnist-halved-3-steps",
    "fashion-mnist-augmented",
    "cifar10-halved-seeds",
    "cifar10-halved-16",
)

WARM_STARTS = (
    "digits-warm",
    "fashion-mnist-halved-warm",
    "fashion-mnist-augmented-warm",
    "cifar10-halved-warm",
    "cifar10-halved-16-warm",
)

TABLES: dict[str, Callable[[], str]] = {
    "digits": adversarial.digits,
    "digits in short": adversarial.digits_in_short,
    "digits in l2": partial(adversarial.digits, "digits-l2"),
    "learned steps": lambda: adversarial.learned_steps(learned_steps(LEARNED_STEPS)),
    "warm starts": lambda: adversarial.warm_starts(
        learned_steps(LEARNED_STEPS), learned_steps(WARM_STARTS)
    ),
    "attack strength": lambda: adversarial.attack_strength(read("attack_strength")),
    "cifar10": adversarial.cifar10,
    "cifar10 in l2": adversarial.cifar10_in_l2,
    "precisions": lambda: adversarial.precisions(
        *(read(f"learned_steps/digits-{precision}") for precision in ("float32", "bf16"))
    ),
    "schedules on digits": adversarial.schedules,
    "through the attacker": lambda: adversarial.through_the_attacker(read("through_the_attacker")),
    "table 3": costs.table_3,
    "table 3 in short": costs.table_3_in_short,
    "options on a cpu": costs.cpu,
    "options on another cpu": partial(costs.cpu, "step_cost-xeon"),
    "options with amx": partial(costs.cpu, "step_cost-amx"),
    "memory": costs.memory,
    "wrn-34-10 on a gpu": partial(costs.gpu, "wrn-34-10"),
    "resnet18 on a gpu": partial(costs.gpu, "resnet18"),
    "training on a gpu": costs.gpu_training,
    "targets": costs.targets,
    "small training": costs.small_training,
    "cleaning": hypergradients.cleaning,
    "cleaning by seeds": hypergradients.cleaning_by_seeds,
    "linear unrolled": lambda: hypergradients.costs(read("hypergradient"), "linear", "unrolled"),
    "linear implicit": lambda: hypergradients.costs(read("hypergradient"), "linear", "implicit"),
    "mlp unrolled": lambda: hypergradients.costs(read("hypergradient"), "mlp", "unrolled"),
    "maml": hypergradients.maml,
    "learned follower": minmax.learned_follower,
    "monitor": lambda: minmax.monitor(read("monitor")),
    "cost of a schedule": lambda: minmax.schedules(read("schedules"), games=1000),
    "cost between networks": lambda: minmax.network_games(read("network_games")),
    "ten demonstrations": imitation.ten_demonstrations,
    "ten demonstrations on pendulum": partial(imitation.steadiness, "pendulum"),
    "ten demonstrations on acrobot": partial(imitation.steadiness, "acrobot"),
    "one demonstration on mountaincar": partial(imitation.one_demonstration, "MountainCar-v0"),
    "one demonstration on cartpole": partial(imitation.one_demonstration, "CartPole-v1"),
    "settings of ho and ermon on mountaincar": partial(
        imitation.settings_of_ho_ermon, "gail-ho-ermon"
    ),
    "settings of ho and ermon on cartpole": partial(
        imitation.settings_of_ho_ermon, "gail-ho-ermon-cartpole"
    ),
    "updaters": imitation.updaters,
}

MARKED = re.compile(r"(<!-- table (.+): begin -->\n).*?\n(<!-- table \2: end -->)", re.DOTALL)


def main() -> None:
    """Writes every table into its page."""
    ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter).parse_args()
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: written")


def learned_steps(folders: Sequence[str]) -> list[Record]:
    """The records of ``learned_steps.py`` in several folders."""
    return [one for name in folders for one in read(f"learned_steps/{name}")]


def pages() -> list[Path]:
    """The pages that hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + "\n" + found[3], text)


if __name__ == "__main__":
    main()
