"""What the suite notes of a training run: figures of its epochs, accuracies of its classifier."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel.robustness import About
from bilevel.robustness.evaluation.results import Outcome
from tests.applications.conftest import Suite
from tests.applications.test_gpu_suite import write_images

CPU = torch.device("cpu")


def among(*chosen: int) -> Tensor:
    return torch.isin(torch.arange(10), torch.tensor(chosen, dtype=torch.long))


def test_accuracies_are_shares_of_all_images(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten, eight are right; later attacks are tried on what the others have left."""
    training, right = suite("training"), among(*range(8))
    outcomes = [
        Outcome("PGM-20", "white", right, among(0, 1), 1.0),
        Outcome("PGM-100", "white", right, among(1, 2), 1.0),
        Outcome("APGD-CE", "white", among(3, 4, 5, 6, 7), among(3), 1.0),
        Outcome("APGD-T", "white", among(4, 5, 6, 7), among(4, 5), 1.0),
    ]
    monkeypatch.setattr(training.Battery, "run", lambda *_, **__: (right, outcomes))
    run = training.Training("pgm", None, "npz", "float32", False, 0, tmp_path)
    about = About("pgm", "small-cnn", 3, 10, "npz", 0.1)
    assert run._attack(about, torch.nn.Identity(), SimpleNamespace(test=None)) == {
        "clean": 0.8,
        "pgm20": 0.6,
        "pgm100": 0.6,
        "left_after_pgm20": 0.6,
        "left_after_pgm100": 0.5,
        "left_after_apgdce": 0.4,
        "left_after_apgdt": 0.2,
        "worst_case": 0.2,
    }


def test_a_run_is_noted_as_it_was_trained(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is that of an epoch in which nothing is compiled, times the epochs."""
    training, sources = suite("training"), suite("gpu_suite")
    data = sources.Args(data=write_images(tmp_path / "images.npz"))
    images = sources.load(data, suite("plan").SMOKE, CPU)
    recipe = sources.replace(sources.fast(sources.RECIPES["digits"]), epochs=3)
    progress = SimpleNamespace(seconds=[9.0, 1.0, 2.0], best_epoch=1)
    fitted: list[Any] = []
    monkeypatch.setattr(training.Trainer, "fit", lambda one: fitted.append(one) or progress)
    monkeypatch.setattr(training.Training, "_attack", lambda *_: {})
    clock = suite("ledger").Clock(1)
    for seed, method in enumerate(("plain", "pgm")):
        run = training.Training(method, recipe, "npz", "bf16", False, seed, tmp_path / method)
        (record,) = run.run(images, clock)
    assert (record["method"], record["seed"], record["precision"]) == ("pgm", 1, "bf16")
    assert (record["seconds"], record["seconds_with_compilation"]) == (6, 12)
    assert record["test_images"] == len(images.test)
    assert [one.validation.monitor for one in fitted] == ["validation_clean", "validation_robust"]
    assert [one.precision for one in fitted] == ["bf16", "bf16"]
    first, second = (next(one.game.leader.parameters()) for one in fitted)
    assert not torch.equal(first, second)
