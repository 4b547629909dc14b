"""Cost and error of a hypergradient: bilevel, TorchOpt, higher, BOAT, and by hand.

    OMP_NUM_THREADS=1 python applications/benchmarks/hypergradient.py
    pip install --no-deps higher boat-torch torchopt  # adds them; TorchOpt: optree and graphviz too

One step of data hyper-cleaning on digits: T = 100 steps of gradient descent train a network on
1,000 weighted samples, and the validation loss is differentiated with respect to the weights, in
float32 on one thread. All implementations are interleaved in one process. Times are CPU times,
medians over rounds, and ratios are medians of the rounds' ratios. An error is the relative distance
from the result of the same method in float64, with its linear system solved exactly. The memory is
the peak of tensors in one run.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))  # hyper_cleaning_lib

from hypergradient_lib import baselines, ours
from hypergradient_lib.task import Task, make_task
from tabulated.hypergradients import costs
from timing import Turn, interleaved, ratios

from bilevel import HypergradientWarning, experiment
from bilevel.arguments import count
from bilevel.experiment import commandline
from bilevel.experiment.files import claim
from bilevel.experiment.memory import peak_mib

Implementation = Callable[[Task], Tensor]

UNROLLED: dict[str, Implementation] = {
    "by hand": baselines.by_hand,
    "TorchOpt": baselines.torchopt_unrolled,
    "higher": baselines.higher_unrolled,
    "BOAT": partial(baselines.boat, operation="RAD"),
    "bilevel": ours.unrolled,
    "by hand, compiled": baselines.compiled_by_hand,
    "bilevel, compiled": ours.compiled,
    "by hand, recomputed": baselines.recomputed_by_hand,
    "bilevel, recomputed": ours.recomputed,
}
IMPLICIT: dict[str, Implementation] = {
    "by hand": baselines.implicit_by_hand,
    "TorchOpt": baselines.torchopt_implicit,
    "BOAT": partial(baselines.boat, operation="CG"),
    "bilevel": ours.implicit,
}
KINDS = {
    ("linear", "unrolled"): (UNROLLED, baselines.by_hand),
    ("linear", "implicit"): (IMPLICIT, baselines.implicit_exact),
    ("mlp", "unrolled"): (UNROLLED, baselines.by_hand),
}
"""Implementations of the same gradient, and its reference in float64. The multilayer perceptron has
not reached a minimum after 100 steps, so it has no implicit gradient."""


@dataclass
class Args:
    """Measure time, error and memory of each implementation of a hypergradient."""

    rounds: int = 15
    steps: int = 100
    """T, the number of inner steps."""
    out: Path = Path("runs/hypergradient")
    seed: int = 0
    smoke: bool = False
    """Seconds instead of minutes: two rounds of few steps."""


def main(args: Args) -> None:
    """Measures, prints the tables and writes the results."""
    for name in ("rounds", "steps"):
        count(name, getattr(args, name))
    claim(args.out)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torchopt")
    warnings.simplefilter("ignore", HypergradientWarning)  # errors are measured
    if args.smoke:
        args.rounds, args.steps = 2, 6
    records = []
    for (model, kind), (implementations, exact) in KINDS.items():
        task = make_task(model, args.steps, args.seed)
        found = measure(
            f"{model}, {kind}", task, implementations, exact(task.double()).float(), args.rounds
        )
        records += [{"model": model, "kind": kind, **record} for record in found]
    environment = experiment.environment(torch.device("cpu"))
    experiment.write_results(args.out, asdict(args), environment, records)
    for model, kind in KINDS:
        print(f"\n{model}, {kind}: dL/dθ of 1,000 weights, T = {args.steps}")
        print(costs(records, model, kind))


def measure(
    title: str, task: Task, implementations: dict[str, Implementation], exact: Tensor, rounds: int
) -> list[dict[str, Any]]:
    """A record of each implementation; of one that is not installed, ``missing``."""
    records: dict[str, dict[str, Any]] = {name: {"way": name} for name in implementations}
    turns: dict[str, Turn] = {}
    for name, implementation in implementations.items():
        try:
            gradient = implementation(task)  # compiles, and fills the caches
        except ImportError as error:
            records[name]["missing"] = error.name
            continue
        records[name]["error"] = float((gradient - exact).norm() / exact.norm())
        turns[name] = partial(implementation, task)
        records[name]["peak_mib"] = peak_mib(turns[name], torch.device("cpu"))
    seconds = interleaved(turns, track(range(rounds), title), clock=time.process_time)
    for name, times in seconds.items():
        records[name]["cpu_ms"] = 1e3 * median(times)
        for other in ("by hand", "TorchOpt"):
            if other in seconds:
                records[name][f"÷ {other}"] = median(ratios(times, seconds[other]))
    return list(records.values())


if __name__ == "__main__":
    commandline.run(main, Args)
