"""`DistributedDataParallel` around the leader's model: what it does for a game, and what not."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bilevel
from bilevel.distributed import Pool
from bilevel.robustness import Batch, Linf
from bilevel.updates import CoordinateRNN, Gradient
from tests import jobs

SOLVERS = {
    "pgm": lambda: bilevel.pgm(0.05, 2),
    "gradient": lambda: bilevel.Iterative(Gradient(0.1), 3),
    "learned": lambda: bilevel.Iterative(CoordinateRNN(scale=0.1), 2),
}
CASES = {
    ("pgm", "parallel"): bilevel.Detached(),
    ("gradient", "parallel"): bilevel.Unrolled(recompute=True),
    ("learned", "parallel"): bilevel.Detached(),
    ("learned", "pool"): bilevel.Detached(),
}
"""Solver, how the processes share gradients, and the adjoint."""


def train(
    solver_name: str, sharing: str, adjoint: bilevel.Adjoint
) -> tuple[bilevel.Bilevel, dict[str, torch.Tensor]]:
    """Four steps, on this process's share of each batch if it shares."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))
    if sharing == "parallel":
        model = DistributedDataParallel(model)
    follower, solver = Linf(0.1), SOLVERS[solver_name]()
    leader, learned = bilevel.ZeroSum(model, follower), bool([*solver.parameters()])
    game = bilevel.Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.5, momentum=0.9),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=0.5) if learned else None,
        adjoint=adjoint,
    )
    if sharing == "pool":
        game.pool = Pool()
    own = slice(None) if sharing == "alone" else slice(dist.get_rank(), None, 2)
    for _ in range(4):
        x, y = torch.rand(8, 1, 3, 3), torch.randint(3, (8,))
        metrics = game.step(Batch(x[own], y[own]))
    return game, metrics


def results(
    game: bilevel.Bilevel, metrics: dict[str, torch.Tensor]
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The weights of leader and solver, and the last metrics."""
    players = (game.leader, game.solver)
    return [weight.detach() for player in players for weight in player.parameters()], metrics


def together(folder: Path) -> None:
    """All cases, in one of two processes."""
    dist.init_process_group("gloo")
    found = {case: results(*train(*case, adjoint)) for case, adjoint in CASES.items()}
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_it_trains_the_leader_as_whole_batches_do_and_no_solver(tmp_path: Path) -> None:
    code = (
        "import sys, types; sys.modules['tests'] = tests = types.ModuleType('tests'); "
        "tests.__path__ = ['tests']; from tests.distributed import test_data_parallel as this; "
        f"this.together(this.Path({str(tmp_path)!r}))"
    )
    ended = jobs.launch("-c", code)
    assert [end.status for end in ended] == [0, 0], ended
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for case, adjoint in CASES.items():
        (weights, metrics), (others, _) = first[case], second[case]
        same = all(map(torch.equal, weights, others))
        assert same == (case != ("learned", "parallel"))
        expected, of_batch = results(*train(case[0], "alone", adjoint))
        if same:
            torch.testing.assert_close(weights, expected)
        if case[1] == "pool":
            torch.testing.assert_close(metrics, of_batch)
