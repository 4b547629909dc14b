"""Cost of a step relative to the same loop written by hand, on f(x, y) = xy.

    python applications/benchmarks/schedules.py
    pip install --no-deps cooper-optim==1.0.1      # adds cooper's optimizers to the comparison

A step of a game of two scalars is pure overhead. In the loop by hand each player has its
``torch.optim.SGD`` and its gradient from autograd of the same function. Measurements are
interleaved, and a ratio is the median over rounds. Then a thousand games are stepped at once,
through ``torch.func.vmap``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.progress import track
from tabulated import minmax
from timing import Turn, interleaved, ratios

from bilevel import experiment, games
from bilevel.alias import SCHEDULES
from bilevel.arguments import count
from bilevel.experiment import commandline
from bilevel.experiment.files import claim

GAME, STEP = games.bilinear(), 0.1


@dataclass
class Args:
    """Time a step of each schedule, of the loop by hand, and of many stacked games."""

    rounds: int = 15
    steps: int = 400
    """Steps of each per round."""
    games: int = 1000
    """Games at once."""
    out: Path = Path("runs/schedules")
    smoke: bool = False
    """Seconds instead of minutes: two rounds of few steps."""


def main(args: Args) -> None:
    """Measures, prints the table and writes the results."""
    for name in ("rounds", "steps", "games"):
        count(name, getattr(args, name))
    claim(args.out)
    torch.set_num_threads(1)
    if args.smoke:
        args.rounds, args.steps, args.games = 2, 20, 10
    turns = {"by hand": by_hand(), "bilevel": library(1), "many": library(args.games)}
    turns["cooper"] = cooper_turns()
    records = []
    for name in SCHEDULES:
        variants = {variant: turn[name] for variant, turn in turns.items() if name in turn}
        seconds = interleaved(
            {variant: partial(repeat, turn, args.steps) for variant, turn in variants.items()},
            track(range(args.rounds), name),
        )
        micro = {name: 1e6 * median(times) / args.steps for name, times in seconds.items()}
        records.append(
            {
                "schedule": name,
                **{f"{variant}, µs": time for variant, time in micro.items()},
                "÷ by hand": median(ratios(seconds["bilevel"], seconds["by hand"])),
                "games at once, ÷ one": micro["many"] / args.games / micro["bilevel"],
            }
        )
    environment = experiment.environment(torch.device("cpu"))
    experiment.write_results(args.out, asdict(args), environment, records)
    print(minmax.schedules(records, args.games))


def repeat(turn: Turn, times: int) -> None:
    """So many turns: a single one is too short to be timed."""
    for _ in range(times):
        turn()


def library(count: int) -> dict[str, Turn]:
    """The library's step, for one game or for many stacked ones."""
    game = GAME if count == 1 else games.stack([GAME] * count)
    turns: dict[str, Turn] = {}
    for name, schedule in SCHEDULES.items():
        play = games.begin(game, 1.0, 0.0, lr=STEP, schedule=schedule())
        turns[name] = lambda play=play: play.step(None)  # type: ignore[misc]
    return turns


class Players:
    """Two scalar players with their optimizers and gradients, written by hand."""

    def __init__(self) -> None:
        self.x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.y = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.opts = [torch.optim.SGD([z], lr=STEP) for z in (self.x, self.y)]
        self.steps = 0
        self.kept: list[torch.Tensor] = []

    def read(self) -> list[torch.Tensor]:
        """Copies of the parameters."""
        return [z.detach().clone() for z in (self.x, self.y)]

    def write(self, values: list[torch.Tensor]) -> None:
        """Sets the parameters."""
        with torch.no_grad():
            for z, value in zip((self.x, self.y), values, strict=True):
                z.copy_(value)

    def gradients(self) -> list[torch.Tensor]:
        """Computes the gradients of both players' losses."""
        for opt in self.opts:
            opt.zero_grad()
        GAME.value(self.x, self.y, *GAME.coefficients).backward()
        assert self.x.grad is not None
        assert self.y.grad is not None
        self.y.grad.neg_()
        return [self.x.grad, self.y.grad]

    def simultaneous(self) -> None:
        """Both step on the same gradients."""
        self.gradients()
        for opt in self.opts:
            opt.step()

    def alternating(self) -> None:
        """One steps, then the other."""
        for opt in self.opts:
            self.gradients()
            opt.step()

    def extragradient(self) -> None:
        """A step with the gradients at the extrapolated point."""
        base = self.read()
        self.simultaneous()
        self.gradients()
        self.write(base)
        for opt in self.opts:
            opt.step()

    def proximal_point(self) -> None:
        """Five fixed-point iterations of the implicit step."""
        base = self.read()
        self.simultaneous()
        for _ in range(4):
            self.gradients()
            self.write(base)
            for opt in self.opts:
                opt.step()

    def optimistic(self) -> None:
        """A step with twice the gradient minus the last one."""
        gradients = self.gradients()
        now = [gradient.clone() for gradient in gradients]
        for gradient, last in zip(gradients, self.kept or now, strict=True):
            gradient.mul_(2).sub_(last)
        self.kept = now
        for opt in self.opts:
            opt.step()

    def lookahead(self) -> None:
        """Averages with the starting point every five steps."""
        if self.steps % 5 == 0:
            self.kept = self.read()
        self.simultaneous()
        self.steps += 1
        if self.steps % 5 == 0:
            self.write([(a + b) / 2 for a, b in zip(self.kept, self.read(), strict=True)])


def by_hand() -> dict[str, Turn]:
    """The loops by hand."""
    return {name: getattr(Players(), name.replace("-", "_")) for name in SCHEDULES}


def cooper_turns() -> dict[str, Turn]:
    """Cooper's optimizers where comparable: y is the multiplier of the constraint x = 0."""
    try:
        import cooper
    except ImportError:
        return {}
    from cooper.optim.torch_optimizers import ExtraSGD

    class Zero(cooper.ConstrainedMinimizationProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.constraint = cooper.Constraint(
                multiplier=cooper.multipliers.DenseMultiplier(num_constraints=1),
                constraint_type=cooper.ConstraintType.EQUALITY,
            )

        def compute_cmp_state(self, x: torch.Tensor) -> object:
            violation = cooper.ConstraintState(violation=x)
            return cooper.CMPState(
                loss=0 * x.sum(), observed_constraints={self.constraint: violation}
            )

    kinds = {
        "simultaneous": (cooper.optim.SimultaneousOptimizer, torch.optim.SGD),
        "alternating": (cooper.optim.AlternatingPrimalDualOptimizer, torch.optim.SGD),
        "extragradient": (cooper.optim.ExtrapolationConstrainedOptimizer, ExtraSGD),
    }
    turns: dict[str, Turn] = {}
    for name, (play, sgd) in kinds.items():
        x, problem = torch.nn.Parameter(torch.ones(1)), Zero()
        primal, dual = sgd([x], lr=STEP), sgd(problem.dual_parameters(), lr=STEP, maximize=True)
        both = play(cmp=problem, primal_optimizers=primal, dual_optimizers=dual)
        turns[name] = lambda both=both, x=x: both.roll({"x": x})  # type: ignore[misc]
    return turns


if __name__ == "__main__":
    commandline.run(main, Args)
