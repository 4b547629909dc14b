"""What `Trainer` reports of a run that is stopped: each window of steps, as of one that is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bilevel.robustness import Trainer


@pytest.mark.parametrize("late", [False, True], ids=["read at once", "read one window late"])
def test_a_run_that_is_stopped_when_it_has_saved_lacks_no_window(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """On a GPU windows are read late."""
    monkeypatch.setattr("bilevel.robustness.training.trainer.WINDOW", 2)
    told: dict[int, dict[str, float]] = {}
    trainer = build(report=told.__setitem__, save_every=-1.0)
    save, trainer._windows._late = trainer.save, late

    def stopped() -> None:
        save()
        if trainer.game.steps == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = build(report=told.__setitem__, save_every=-1.0)
    resumed.resume()
    assert resumed.game.steps == 4
    resumed.fit()
    assert sorted(told) == [2, 4, 6, 8, 10, 12]
