"""Steps within an epoch, for none of which the host waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bilevel import ZeroSum
from bilevel.robustness import (
    Attacker,
    ImageSet,
    Linf,
    Recipe,
    Splits,
    Trainer,
    make_game,
    make_solver,
)
from bilevel.robustness.networks.precision import Precision
from tests.problems import BatchNormNet

# A warning of a driver or a compiler is shown, and fails no test.
pytestmark = pytest.mark.filterwarnings("default")


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("method", ["two-step-pgm", "two-step-l2l"])
def test_steps_within_an_epoch_do_not_wait(
    method: str, precision: Precision, device: torch.device, tmp_path: Path
) -> None:
    pixels = torch.randint(256, (32, 1, 4, 4), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(32) % 3, ("a", "b", "c")).to(device)
    attacker, follower = Attacker("two-layer", width=4), Linf(0.1, start=0.05)
    solver = make_solver(method, eps=0.1, channels=1, attacker=attacker)
    model, recipe = BatchNormNet(dropout=0.2), Recipe(epsilon=0.1, batch_size=4, padding=1, ema=0.9)
    for network in (model, solver):
        network.to(device).to(memory_format=torch.channels_last)
    game = make_game(ZeroSum(model, follower), follower, solver, recipe)
    trainer = Trainer(
        game,
        Splits(images, images, images),
        recipe,
        seed=0,
        path=tmp_path / "run.pt",
        precision=precision,
    )
    batches = trainer._batches()
    for _ in range(3):
        trainer._windows.add(trainer._step(next(batches)))
    with waiting_forbidden():
        for batch in batches:
            trainer._windows.add(trainer._step(batch))
        trainer._windows.close(game.steps, last=False)
    assert game.steps == 8
