"""Games, hypergradients and checkpoints: on a GPU what they are on a processor."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bilevel import Adjoint, Bilevel, Forward, Implicit, Penalty, Unrolled, games
from bilevel.alias import SCHEDULES
from bilevel.experiment import checkpoint
from tests.gpu.players import image_batch, image_game, ridge_game, rows

# A warning of a driver or a compiler is shown, and fails no test.
pytestmark = pytest.mark.filterwarnings("default", "error::bilevel.HypergradientWarning")
CPU = torch.device("cpu")
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bilinear_game_takes_the_same_path(schedule: str, device: torch.device) -> None:
    def path(where: torch.device) -> Tensor:
        with where:
            bilinear = games.bilinear()
        game = games.begin(bilinear, 1.0, -0.5, lr=0.1, schedule=SCHEDULES[schedule]())
        found = games.trajectory(game, 12)
        assert (found.device.type, found.dtype) == (where.type, torch.float64)
        return found.cpu()

    close(path(device), path(CPU))


@pytest.mark.parametrize(
    "adjoint",
    [
        Unrolled(),
        Unrolled(recompute=True),
        Unrolled(truncate=20),
        Implicit(),
        Implicit("exact"),
        Implicit("gmres"),
        Forward(),
    ],
    ids=repr,
)
def test_a_hypergradient_is_that_of_a_processor(adjoint: Adjoint, device: torch.device) -> None:
    def slope(where: torch.device) -> Tensor:
        game = ridge_game(where, adjoint=adjoint)
        (decay,) = game.leader.parameters()
        before = decay.detach().clone()
        game.step(rows(where))
        assert decay.device.type == where.type
        return ((before - decay.detach()) / 0.5).cpu()

    expected = slope(CPU)
    assert expected.abs().max() > 1e-2
    close(slope(device), expected)


def test_a_penaltys_hypergradient_is_that_of_a_processor(device: torch.device) -> None:
    """Up to rounding, which the strength multiplies."""
    found: list[Tensor] = []
    for where in (CPU, device):
        game = ridge_game(where, adjoint=Penalty(100.0))
        game.step(rows(where))
        found += [decay.detach().cpu() for decay in game.leader.parameters()]
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("there", [False, True], ids=["from the GPU", "to the GPU"])
@pytest.mark.parametrize("schedule", ["simultaneous", "lookahead"])
def test_a_checkpoint_goes_on_on_the_other_device(
    schedule: str, there: bool, device: torch.device, tmp_path: Path
) -> None:
    places = (CPU, device) if there else (device, CPU)
    begun, resumed = (image_game(place, schedule=schedule) for place in places)
    for seed in range(3):
        begun.step(image_batch(places[0], seed=seed))
    checkpoint.save(tmp_path / "game.pt", {"game": begun.state_dict()})
    resumed.load_state_dict(checkpoint.load(tmp_path / "game.pt")["game"])
    for a, b in zip(_leaves(begun), _leaves(resumed), strict=True):
        assert torch.equal(a.cpu(), b.cpu()) if isinstance(a, Tensor) else a == b
    metrics = resumed.step(image_batch(places[1], seed=3))
    expected = begun.step(image_batch(places[0], seed=3))
    assert {value.device.type for value in metrics.values()} == {places[1].type}
    torch.testing.assert_close(
        metrics["loss"].cpu(), expected["loss"].cpu(), rtol=1e-2, atol=1e-2
    )  # of float32, or of tf32


def _leaves(game: Bilevel) -> list[Any]:
    return tree_leaves(game.state_dict())
