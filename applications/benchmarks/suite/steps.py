"""Training steps to be timed, and the multiply–adds that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bilevel import Bilevel, Solver, ZeroSum
from bilevel.alias import SCHEDULES, ScheduleName
from bilevel.robustness import (
    Attacker,
    Batch,
    Linf,
    Recipe,
    build_model,
    compile_network,
    computing,
    fitting_width,
    make_game,
    make_solver,
)
from bilevel.robustness.networks.precision import Precision

METHODS = {
    "plain": "3F",
    "fgsm": "5F",
    "pgm": "23F",
    "naive-l2l": "3F + 3G",
    "grad-l2l": "5F + 3G",
    "two-step-l2l": "7F + 6G",
}
"""The methods and what Algorithm 3 costs, a backward pass to the weights as two forward passes."""


@dataclass(frozen=True)
class Size:
    """The sizes of classifier, attacker and batch.

    Args:
        model: The classifier, see ``build_model``.
        attacker_width: Channels of the attacker; None for a tenth of the classifier's cost at most.
        batch_size: Images per step.
        channels: Channels of an image.
        image_size: Its height and width.
    """

    model: str
    attacker_width: int | None
    batch_size: int
    channels: int = 3
    image_size: int = 32

    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size

    def classifier(self) -> nn.Module:
        return build_model(self.model, channels=self.channels, classes=10)

    def solver(self, method: str) -> Solver:
        eps, attacker = Recipe().epsilon, attacker_of(self)
        return make_solver(method, eps=eps, channels=self.channels, attacker=attacker)


@cache
def attacker_of(size: Size) -> Attacker:
    """The attacker's network, of the width that was given or fits."""
    attacker = Attacker("wide")
    width = size.attacker_width or fitting_width(attacker, size.classifier(), size.shape())
    return replace(attacker, width=width)


@dataclass(frozen=True)
class Case:
    """One way to take a step."""

    method: str
    schedule: ScheduleName = "simultaneous"
    precision: Precision = "float32"
    compiled: bool = False
    graphs: bool = False
    """Captured as one CUDA graph, which a GPU replays without Python."""

    def __str__(self) -> str:
        words = self.method, self.schedule, way(self.precision, self.compiled, self.graphs)
        return ", ".join(words)


def way(precision: str, compiled: bool, graphs: bool = False) -> str:
    """How a step computes, in words."""
    return precision + " compiled" * compiled + " in a CUDA graph" * graphs


class Bench:
    """Makes games that share a classifier and a batch of noise.

    Their learning rates are 0: a step costs what any step costs, and nothing diverges.

    Args:
        size: The sizes of networks and batch.
        device: The device.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size = size
        self.device = device
        with device:
            images = torch.rand(size.batch_size, *size.shape())
            self.batch = Batch(images, torch.randint(10, (size.batch_size,)))
        # Captured steps share their memory: one runs at a time, and none reads what another left.
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._classifiers: dict[bool, nn.Module] = {}

    def game(self, case: Case) -> Bilevel:
        """A game of that method, in training mode."""
        if case.compiled not in self._classifiers:
            self._classifiers[case.compiled] = self._placed(self.size.classifier(), case.compiled)
        solver = self.size.solver(case.method)
        for update in learned(solver):
            self._placed(update, case.compiled)
        follower = Linf(Recipe().epsilon)
        leader = ZeroSum(self._classifiers[case.compiled], follower)
        recipe = Recipe(model=self.size.model, lr=0.0, attacker_lr=0.0)
        return make_game(leader, follower, solver, recipe, schedule=SCHEDULES[case.schedule]())

    def _placed(self, network: nn.Module, compiled: bool) -> nn.Module:
        network.to(self.device, memory_format=torch.channels_last)
        if compiled:
            compile_network(network)
        return network


def learned(solver: Solver) -> list[nn.Module]:
    """The networks among a solver's updates."""
    return [update for update in solver.children() if any(True for _ in update.parameters())]


@cache
def count(
    size: Size, method: str, schedule: ScheduleName, device: torch.device
) -> dict[str, float]:
    """Multiply–adds of a step on one image, and of a forward pass of each network.

    On the device, since operations on the meta device take longer than those on one image.
    """
    bench = Bench(replace(size, batch_size=1), device)
    game, batch = bench.game(Case(method, schedule)), bench.batch
    attacker = size.solver("grad-l2l").update.to(device)
    passes = {
        "classifier_forward": lambda: game.leader.model(batch.x),
        "attacker_forward": lambda: attacker(batch.x, batch.x, batch.x, None),
        "step": lambda: game.step(batch),
    }
    counts = {}
    for name, run in passes.items():
        with FlopCounterMode(display=False) as counter:
            run()
        counts[name] = counter.get_total_flops() / 2
    return {**counts, "step_in_classifier_forwards": counts["step"] / counts["classifier_forward"]}


def take(step: Callable[[Batch], object], batch: Batch, precision: Precision) -> None:
    """Takes a step of a game, or of its graph, in a precision."""
    with computing(precision, batch.x.device, one_size=True):
        step(batch)
