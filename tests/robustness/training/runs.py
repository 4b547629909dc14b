"""Small training runs, how to stop them, and what they leave."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from bilevel.robustness import Recipe, Trainer

RECIPE = Recipe(epsilon=0.1, epochs=2, batch_size=4, padding=1, milestones=(0.5,))


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def outcome(trainer: Trainer) -> dict[str, Any]:
    """Everything that a run leaves."""
    progress = asdict(trainer.progress)
    return {"game": trainer.game.state_dict(), "best": trainer.best_weights, **progress}


def stop_after(trainer: Trainer, steps: int) -> None:
    """Runs until someone presses Ctrl-C."""
    step = trainer.game.step

    def interrupted(batch: Any) -> Any:
        if trainer.game.steps == steps:
            raise KeyboardInterrupt
        return step(batch)

    trainer.game.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
