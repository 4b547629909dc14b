"""Meta-learning an initialization from which ten points are enough to learn any sine wave.

    python applications/maml.py     # two minutes

MAML (Finn et al., ICML 2017, Sec. 5.1) as a bilevel problem: the leader is the shared start θ, the
follower's y_i the change of θ by gradient descent on the ten support points of task i. θ + y_i is
evaluated on query points. Adjoint and steps give the method.
"""

from __future__ import annotations

from collections import namedtuple
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn
from torch.func import functional_call, vmap

import bilevel
from bilevel import Detached, Iterative, Unrolled, experiment
from bilevel.arguments import MOST, choices, count
from bilevel.experiment import checkpoint, commandline
from bilevel.experiment.files import claim, remove
from bilevel.experiment.tables import Table, cell
from bilevel.experiment.weights import load_weights, read_about, save_weights
from bilevel.updates import Gradient

METHODS: dict[str, tuple[bilevel.Adjoint, Iterative]] = {
    "maml": (Unrolled(), Iterative(Gradient(0.01), 5)),  # differentiates through the inner steps
    "fomaml": (Detached(), Iterative(Gradient(0.01), 5)),  # y is a constant: first-order MAML
    "joint": (Detached(), Iterative(Gradient(0.01), 0)),  # θ for all tasks, without adaptation
}
STEPS = (0, 1, 5, 20)  # after which the error is reported
Points = namedtuple("Points", "x y")
Tasks = tuple[Points, Points]  # support and query points of B functions, (B, K, 1) each


class Initialization(bilevel.LeaderProblem):
    """The leader: θ, evaluated after adaptation to each task."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def errors(self, y: dict[str, Tensor], points: Points) -> Tensor:
        """The mean squared error of θ + y_i on points of task i, (B,)."""
        adapted = {name: theta + y[name] for name, theta in self.network.named_parameters()}
        predict = vmap(lambda parameters, x: functional_call(self.network, parameters, (x,)))
        return torch.square(predict(adapted, points.x) - points.y).mean((1, 2))

    def loss(self, y: Any, batch: Tasks) -> Tensor:
        return self.errors(y, batch[1]).mean()


class Adaptation(bilevel.FollowerProblem):
    """The follower: min over y_i of the error of θ + y_i on the support points, from y_i = 0."""

    sense = "min"

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def init(self, batch: Tasks) -> dict[str, Tensor]:
        count, parameters = len(batch[0].x), self.network.named_parameters()
        return {name: theta.new_zeros(count, *theta.shape) for name, theta in parameters}

    def objective(self, leader: Initialization, y: dict[str, Tensor], batch: Tasks) -> Tensor:
        return leader.errors(y, batch[0])


@dataclass
class Args:
    """Meta-learn an initialization from which ten points are enough for any sine wave."""

    method: tuple[str, ...] = tuple(METHODS)
    """maml, fomaml, joint."""
    iterations: int = 3000
    """Outer steps of each method, with 25 tasks each."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/maml")
    """Results, weights and TensorBoard logs; replaced without --resume."""
    seed: int = 0
    device: str = "cpu"
    smoke: bool = False
    """Seconds instead of minutes: at most 20 steps."""
    resume: bool = False
    """Load the initializations that were learned with the same arguments, and learn the others."""


def main(args: Args) -> None:
    """Learns with each method, prints the table and writes the results."""
    args.iterations = min(count("iterations", args.iterations), 20 if args.smoke else MOST)
    count("seed", args.seed, least=0)
    args.method = choices("method", args.method, METHODS)
    device = experiment.pick_device(args.device)
    if args.resume and not any(args.out.glob("*/start.safetensors")):
        raise bilevel.BilevelError(f"there is no start in {args.out} to load: leave out --resume")
    claim(args.out)
    remove(*(args.out / name / "start.safetensors" for name in args.method if not args.resume))
    records, rows = [], []
    for method in args.method:
        leader, follower = learn(args, method, device)
        unseen = sine_waves(500, torch.Generator().manual_seed(10_000), device)
        found = {n: Iterative(Gradient(0.01), n).solve(follower, leader, unseen) for n in STEPS}
        errors = {f"error_{n}": leader.loss(y.value, unseen).item() for n, y in found.items()}
        records.append({"method": method, "seed": args.seed, **errors})
        rows.append([method, *map(cell, errors.values())])
    experiment.write_results(args.out, asdict(args), experiment.environment(device), records)
    Table("error on unseen waves after so many steps", ["method", *map(str, STEPS)], rows).print()


def learn(args: Args, method: str, device: torch.device) -> tuple[Initialization, Adaptation]:
    """Learns an initialization with one method, or loads it with --resume."""
    torch.manual_seed(args.seed)
    layers = nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    leader = Initialization(nn.Sequential(*layers).to(device))
    follower = Adaptation(leader.network)
    path = args.out / method / "start.safetensors"
    about = {"iterations": str(args.iterations), "seed": str(args.seed)}
    if args.resume and path.exists():
        checkpoint.check_settings(path, read_about(path), about)
        load_weights(path, leader)
        return leader, follower
    adjoint, solver = METHODS[method]
    adam = torch.optim.Adam(leader.parameters(), lr=1e-3)
    game = bilevel.Bilevel(leader, follower, solver, leader_opt=adam, adjoint=adjoint)
    generator = torch.Generator().manual_seed(args.seed)
    with experiment.Journal(method, path.parent) as journal:
        journal.begin(args.iterations)
        for iteration in range(1, args.iterations + 1):
            loss = game.step(sine_waves(25, generator, device))["loss"]
            if iteration % 20 == 0:
                journal.report(iteration, {"loss": loss.item()})
    save_weights(path, leader, about)
    return leader, follower


def sine_waves(count: int, generator: torch.Generator, device: torch.device) -> Tasks:
    """Waves of random phase and amplitude (0.1 to 5): ten support and ten query points each."""
    amplitude, phase = torch.rand(2, count, 1, 1, generator=generator).to(device)
    x = 10 * torch.rand(count, 20, 1, generator=generator).to(device) - 5
    y = (0.1 + 4.9 * amplitude) * torch.sin(x - torch.pi * phase)
    return Points(x[:, :10], y[:, :10]), Points(x[:, 10:], y[:, 10:])


if __name__ == "__main__":
    commandline.run(main, Args)
