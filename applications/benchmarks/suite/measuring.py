"""Steps timed: games of one classifier that take turns, with their memory and arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median

import torch
from timing import Turn, interleaved, spread
from torch import Tensor, nn

from bilevel import Bilevel
from bilevel.cuda_graphs import WARM_UP, CapturedStep
from bilevel.experiment.memory import peak_mib
from bilevel.robustness import computing
from bilevel.robustness.networks.compilation import is_compiled
from bilevel.robustness.networks.precision import Precision
from suite.ledger import Record
from suite.steps import Bench, Case, Size, count, learned, take


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
    games: dict[Case, Game] = {}
    failed: list[Record] = []

    def fail(case: Case, reason: str) -> None:
        tell(f"  failed: {reason}")
        failed.append({**asdict(size), **asdict(case), "failed": reason})

    for case in cases:
        tell(str(case))
        try:
            games[case] = set_up(bench, case)
        except Exception as error:  # a case that fails does not cost the others their figures
            fail(case, " ".join(f"{type(error).__name__}: {error}".split())[:300])
    seconds = interleaved({case: game.turn for case, game in games.items()}, range(rounds), device)
    for case, game in games.items():  # what could not be compiled computes as before, in silence
        if case.compiled and not all(map(is_compiled, game.networks)):
            fail(case, "RuntimeError: a network could not be compiled")
            del seconds[case]
    records = []
    for case, times in seconds.items():
        counted = count(size, case.method, case.schedule, device)
        arithmetic = 2 * counted["step"] * size.batch_size
        pgm = replace(case, method="pgm", schedule="simultaneous")
        records.append(
            {
                **asdict(size),
                **asdict(case),
                **counted,
                "seconds": median(times),
                "flops_per_second": arithmetic / median(times),
                "peak_mib": games[case].peak_mib,
                **(spread("ratio_to_pgm", times, seconds[pgm]) if pgm in seconds else {}),
            }
        )
    return records + failed


@dataclass(frozen=True)
class Game:
    """A game that has taken its first steps.

    Args:
        game: The game.
        turn: Takes a step.
        peak_mib: Memory of a step; None of a captured one, whose memory is its graph's.
    """

    game: Bilevel
    turn: Turn
    peak_mib: float | None

    @property
    def networks(self) -> list[nn.Module]:
        """The classifier and the attacker."""
        return [self.game.leader.model, *learned(self.game.solver)]


def set_up(bench: Bench, case: Case) -> Game:
    """A game that is ready to be timed."""
    game = bench.game(case)
    if case.graphs:
        step = partial(take, CapturedStep(game, bench.pool), bench.batch, case.precision)
        for _ in range(WARM_UP + 1):
            step()
        return Game(game, step, None)
    step = partial(take, game.step, bench.batch, case.precision)
    for _ in range(2):  # compiled by the first; the second finds what it has left
        step()
    return Game(game, step, peak(game, step, bench.device))


def peak(game: Bilevel, step: Turn, device: torch.device) -> float:
    """MiB of a game at the peak of a step: networks, optimizer states, graph and temporaries.

    Other games on the device do not count.
    """
    kept: list[Tensor] = []
    for player, optimizer in ((game.leader, game.leader_opt), (game.solver, game.solver_opt)):
        player.zero_grad()  # what is there before a step is not seen to come
        kept += [*player.parameters(), *player.buffers()]
        for state in optimizer.state.values() if optimizer else ():
            kept += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in kept) / 2**20 + peak_mib(step, device)


def matrix_rate(precision: Precision, device: torch.device) -> float:
    """Floating-point operations a second of a large product of random matrices."""
    size = 8192 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    turn = {"product": lambda: a @ b}
    with computing(precision, device):
        interleaved(turn, range(3), device)
        return 2 * size**3 / median(interleaved(turn, range(10), device)["product"])
