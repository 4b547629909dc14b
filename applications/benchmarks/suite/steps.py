"""Training steps counted and timed: games of one classifier that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bilevel import Bilevel, Solver, ZeroSum
from bilevel.alias import SCHEDULES, ScheduleName
from bilevel.memory import peak_mib
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
from bilevel.robustness.speed import Precision, is_compiled

METHODS = {
    "plain": "3F",
    "fgsm": "5F",
    "pgm": "23F",
    "naive-l2l": "3F + 3G",
    "grad-l2l": "5F + 3G",
    "two-step-l2l": "7F + 6G",
}
"""The methods and what Algorithm 3 costs, a backward pass to the weights as two forward passes."""

Record = dict[str, Any]
Turn = Callable[[], object]
_Name = TypeVar("_Name")


@dataclass(frozen=True)
class Size:
    """What is trained, and on how much at a time.

    Args:
        model: The classifier, see ``build_model``.
        attacker_width: None for a tenth of the classifier's cost.
        batch_size: Images a step.
        channels: Of the images.
        image_size: Their height and width.
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
        size: What is trained.
        device: Where.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size = size
        self.device = device
        with device:
            images = torch.rand(size.batch_size, *size.shape())
            self.batch = Batch(images, torch.randint(10, (size.batch_size,)))
        self._classifiers: dict[bool, nn.Module] = {}

    def game(self, case: Case) -> Bilevel:
        """A game of that method, in training mode."""
        if case.compiled not in self._classifiers:
            self._classifiers[case.compiled] = self._placed(self.size.classifier(), case.compiled)
        solver = self.size.solver(case.method)
        for update in solver.children():
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


def count(size: Size, method: str, schedule: ScheduleName) -> dict[str, float]:
    """Multiply–adds of a step, and of a forward pass of each network, an image."""
    bench = Bench(size, torch.device("meta"))
    game, batch = bench.game(Case(method, schedule)), bench.batch
    attacker = size.solver("grad-l2l").update.to("meta")
    passes: dict[str, Turn] = {
        "classifier_forward": lambda: game.leader.model(batch.x),
        "attacker_forward": lambda: attacker(batch.x, batch.x, batch.x, None),
        "step": lambda: game.step(batch),
    }
    counts = {}
    for name, run in passes.items():
        with FlopCounterMode(display=False) as counter:
            run()
        counts[name] = counter.get_total_flops() / 2 / size.batch_size
    return {**counts, "step_in_classifier_forwards": counts["step"] / counts["classifier_forward"]}


def measure(
    size: Size,
    cases: Sequence[Case],
    device: torch.device,
    rounds: int,
    tell: Callable[[str], None],
) -> list[Record]:
    """A record of each case: seconds, memory and arithmetic of a step.

    The cases take turns, so that a busy machine slows all alike. A ratio to PGM-10 is that to the
    same precision and compilation under ``Simultaneous``, round by round.
    """
    bench = Bench(size, device)
    turns: dict[Case, Turn] = {}
    peaks, failed = {}, []
    for case in cases:
        tell(str(case))
        try:
            turns[case], peaks[case] = set_up(bench, case)
        except Exception as error:  # a case that fails does not cost the others their figures
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            tell(f"  failed: {reason}")
            failed.append({**asdict(size), **asdict(case), "reason": reason})
    seconds = interleaved(turns, device, rounds)
    counts = {(c.method, c.schedule): count(size, c.method, c.schedule) for c in cases}
    records = []
    for case, times in seconds.items():
        counted = counts[case.method, case.schedule]
        arithmetic = 2 * counted["step"] * size.batch_size
        pgm = replace(case, method="pgm", schedule="simultaneous")
        records.append(
            {
                **asdict(size),
                **asdict(case),
                **counted,
                "seconds": median(times),
                "flops_per_second": arithmetic / median(times),
                "peak_mib": peaks[case],
                **(spread("ratio_to_pgm", times, seconds[pgm]) if pgm in seconds else {}),
            }
        )
    return records + failed


def set_up(bench: Bench, case: Case) -> tuple[Turn, float]:
    """A game that has taken its first steps, and the MiB of another one."""
    game = bench.game(case)
    step = partial(take, game, bench.batch, case.precision)
    for _ in range(2):  # compiled by the first; the second finds what it has left
        step()
    if case.compiled and not is_compiled(game.leader.model):
        raise RuntimeError("the classifier could not be compiled")
    memory = peak(game, step, bench.device)
    return captured(game, step) if case.graphs else step, memory


def take(game: Bilevel, batch: Batch, precision: Precision) -> None:
    """A step."""
    with computing(precision, batch.x.device):
        game.step(batch)


def captured(game: Bilevel, step: Turn) -> Turn:
    """The step as a CUDA graph: its kernels, recorded once and launched together."""
    for optimizer in (game.leader_opt, game.solver_opt):
        for group in optimizer.param_groups if optimizer else ():
            if "capturable" in group:
                group["capturable"] = True
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as torch.cuda.graph asks for
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def peak(game: Bilevel, step: Turn, device: torch.device) -> float:
    """MiB of a game at the peak of a step: networks, what optimizers keep, and what comes and goes.

    Other games on the device do not count.
    """
    kept: list[Tensor] = []
    for player, optimizer in ((game.leader, game.leader_opt), (game.solver, game.solver_opt)):
        player.zero_grad()  # what is there before a step is not seen to come
        kept += [*player.parameters(), *player.buffers()]
        for state in optimizer.state.values() if optimizer else ():
            kept += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in kept) / 2**20 + peak_mib(step, device)


def interleaved(
    turns: Mapping[_Name, Turn], device: torch.device, rounds: int
) -> dict[_Name, list[float]]:
    """Wall-clock seconds of a turn in each round, the device's work included."""
    times = dict.fromkeys(turns, 1)
    if device.type == "cuda":  # handed several at once, as in training: it hides what Python does
        for name, turn in turns.items():
            times[name] = max(1, min(10, int(0.3 / timed(turn, device, 1))))
    seconds: dict[_Name, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            seconds[name].append(timed(turn, device, times[name]))
    return seconds


def timed(turn: Turn, device: torch.device, times: int) -> float:
    """Seconds of a turn, one of so many in a row."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        turn()
    synchronize()
    return (time.perf_counter() - begun) / times


def spread(name: str, times: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest ratio, round by round: what slowed a round slowed both sides."""
    ratios = [mine / theirs for mine, theirs in zip(times, others, strict=True)]
    return {name: median(ratios), f"{name}_min": min(ratios), f"{name}_max": max(ratios)}


def matrix_rate(precision: Precision, device: torch.device) -> float:
    """Floating-point operations a second of a large product of random matrices."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    turn = {"product": lambda: a @ b}
    with computing(precision, device):
        interleaved(turn, device, 3)
        return 2 * size**3 / median(interleaved(turn, device, 10)["product"])
