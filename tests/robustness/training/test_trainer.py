"""`Trainer`: the best weights, learning rates, and resuming bit for bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bilevel import Alternating, BilevelError, NonFiniteError, Schedule, Simultaneous
from bilevel.experiment import checkpoint
from bilevel.robustness import Batch, Linf, Splits, Trainer, shuffled_batches
from bilevel.robustness.training import trainer as module
from bilevel.robustness.training import validation
from bilevel.robustness.training.modes import set_training
from bilevel.robustness.training.windows import MetricWindows
from tests.images import image_set
from tests.robustness.training.runs import RECIPE, equal, outcome, stop_after


@pytest.mark.parametrize(
    ("steps", "save_every", "epoch", "position"),
    [(0, -1.0, 0, 0), (3, -1.0, 0, 2), (7, -1.0, 1, 0), (11, -1.0, 1, 4), (11, math.inf, 0, 0)],
    ids=["first step", "first epoch", "saved between epochs", "last epoch", "saved at the start"],
)
@pytest.mark.parametrize("schedule", [Simultaneous(), Alternating()], ids=repr)
@pytest.mark.parametrize("method", ["two-step-pgm", "two-step-l2l"])
def test_a_stopped_run_resumed_equals_the_run_never_stopped(
    build: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    schedule: Schedule,
    steps: int,
    save_every: float,
    epoch: int,
    position: int,
) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    straight = build(method, schedule)
    straight.fit()
    assert straight.progress.seconds == [3, 3]
    straight.path.unlink()
    after = torch.get_rng_state()

    stop_after(build(method, schedule, save_every=save_every), steps)
    resumed = build(method, schedule)
    torch.manual_seed(99)
    resumed.resume()
    assert (resumed.progress.epoch, resumed.progress.position) == (epoch, position)
    assert resumed.game.steps == 6 * epoch + position
    resumed.fit()
    assert equal(outcome(resumed), outcome(straight))
    assert torch.equal(torch.get_rng_state(), after)


def test_a_trainer_that_goes_back_forgets_what_it_has_measured_since(
    build: Callable[..., Trainer],
) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    trainer = build("two-step-pgm", report=lambda *report: told.append(report))
    stop_after(trainer, 3)
    del trainer.game.step
    trainer.resume()
    trainer.fit()
    expected: list[tuple[int, dict[str, float]]] = []
    build("two-step-pgm", report=lambda *report: expected.append(report)).fit()
    assert told == expected


def test_the_seed_decides_the_run(build: Callable[..., Trainer]) -> None:
    first, again, other = build(seed=0), build(seed=0), build(seed=1)
    for trainer, seed in ((first, 5), (again, 5), (other, 6)):
        torch.manual_seed(seed)
        trainer.fit()
    assert equal(outcome(first), outcome(again))
    assert not equal(outcome(first), outcome(other))


def test_each_epoch_has_the_batches_of_the_seed_and_the_epoch(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(seed=3)
    step, seen = trainer.game.step, []
    monkeypatch.setattr(trainer.game, "step", lambda batch: seen.append(batch) or step(batch))
    trainer.fit()
    epoch = partial(shuffled_batches, trainer.data.train, 4, seed=3, augment=RECIPE.augment)
    assert equal(seen, [*epoch(epoch=0), *epoch(epoch=1)])


def test_networks_that_come_in_evaluation_mode_are_trained_too(
    build: Callable[..., Trainer],
) -> None:
    trainer = build()
    networks = trainer.game.leader, trainer.game.solver
    for network in networks:
        network.eval()
    trainer.fit()
    assert all(part.training for network in networks for part in network.modules())


@pytest.mark.parametrize(
    ("monitor", "best"),
    [("validation_robust", 3), ("validation_clean", 0)],
    ids=["robust", "clean"],
)
def test_the_weights_that_validate_best_are_put_back(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, monitor: str, best: int
) -> None:
    """By accuracies that are dictated; of equally robust epochs the one that is right most often.

    Of two that are equal in that, too, the first is kept.
    """
    clean, attacked = iter([0.9, 0.5, 0.9, 0.7, 0.7]), iter([0.3, 0.4, 0.3, 0.4, 0.4])
    monkeypatch.setattr(
        validation,
        "accuracy",
        lambda model, images, *attack, batch_size: next(attacked if attack else clean),
    )
    weights = []

    def networks() -> list[dict[str, Any]]:
        return [part.state_dict() for part in (trainer.game.leader, trainer.game.solver)]

    def remember(steps: int, metrics: dict[str, float]) -> None:
        if "epoch" in metrics:
            weights.append(copy.deepcopy(networks()))

    trainer = build(recipe=replace(RECIPE, epochs=5), monitor=monitor, report=remember)
    progress = trainer.fit()
    assert progress.best_epoch == best
    assert [equal(networks(), epoch) for epoch in weights] == [i == best for i in range(5)]


def test_validation_draws_random_numbers_of_its_own(build: Callable[..., Trainer]) -> None:
    """However an epoch is measured, the next one trains alike."""
    ends = []
    for start in (0.0, 0.05):
        ball = Linf(0.1, start=start)
        trainer = build(validation_attack=(ball, ball.pgm(0.03, 1)))
        trainer.fit()
        ends.append((trainer.game.leader_opt.state_dict(), torch.get_rng_state()))
    assert equal(*ends)


def test_short_epochs_are_not_saved_one_by_one(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda path, state: saved.append(path))
    trainer = build(path="run.pt", recipe=replace(RECIPE, epochs=5))
    trainer.fit()
    assert saved == [Path("run.pt")] * 2  # before the first step and at the end


def test_bf16_trains_the_networks_in_bfloat16_and_validates_in_float32(
    build: Callable[..., Trainer],
) -> None:
    seen: set[tuple[bool, torch.dtype]] = set()
    trainer = build(precision="bf16")
    leader = trainer.game.leader
    leader.model.register_forward_hook(
        lambda model, inputs, logits: seen.add((torch.is_autocast_enabled("cpu"), logits.dtype))
    )
    progress = trainer.fit()
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(math.isfinite(value) for record in progress.history for value in record.values())
    parameters = [*leader.parameters(), *trainer.game.solver.parameters()]
    assert {parameter.dtype for parameter in parameters} == {torch.float32}


def test_a_classifier_that_gives_nan_is_not_saved(build: Callable[..., Trainer]) -> None:
    """The last step of an epoch may break what no later loss would show."""

    def break_it(steps: int, metrics: dict[str, float]) -> None:
        if steps == 12:
            with torch.no_grad():
                next(trainer.game.leader.parameters()).fill_(math.nan)

    trainer = build(report=break_it, save_every=-1.0)
    with pytest.raises(NonFiniteError, match="step 12: the classifier's logits are not finite"):
        trainer.fit()
    progress = checkpoint.load(trainer.path)["progress"]
    assert (progress["epoch"], progress["position"]) == (1, 0)


def test_what_a_gpu_has_not_told_yet_is_read_before_it_is_saved(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    trainer = build(save_every=-1.0)
    trainer._windows = MetricWindows(torch.device("cuda"))
    monkeypatch.setattr(trainer.game, "step", lambda batch: {"loss": torch.tensor(math.nan)})
    with pytest.raises(NonFiniteError, match="loss is nan at step 1 of the last 2 read"):
        trainer.fit()
    assert checkpoint.load(trainer.path)["progress"]["position"] == 0


# Checkpoints that do not belong.


@pytest.mark.parametrize("part", ["train", "validation"])
def test_no_images(build: Callable[..., Trainer], part: str) -> None:
    data = build("two-step-pgm").data
    nothing = data._replace(**{part: data.train.subset([])})
    with pytest.raises(BilevelError, match=f"the {part} split is empty: .*give one image or more"):
        build("two-step-pgm", data=nothing)


def test_statistics_of_what_the_follower_holds_are_averaged_over_processes(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, averaged = build("two-step-pgm"), []
    game, follower = trainer.game, trainer.game.follower
    follower.reference = nn.BatchNorm1d(2)
    game.pool, step = SimpleNamespace(), game.step

    def alone(batch: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(game, "pool", None)
            return step(batch)

    monkeypatch.setattr(game, "step", alone)
    monkeypatch.setattr(
        module.distributed,
        "average_statistics",
        lambda pool, networks: averaged.append([m for net in networks for m in net.modules()]),
    )
    trainer.fit()
    own = {part for part in game.leader.modules() if isinstance(part, nn.BatchNorm2d)}
    for parts in averaged:
        norms = {part for part in parts if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))}
        assert norms == own | {follower.reference}
    assert len(averaged) == game.steps > 0


@pytest.mark.parametrize("one_cycle", [True, False])
def test_each_step_has_the_recipes_learning_rate(
    build: Callable[..., Trainer], one_cycle: bool
) -> None:
    """Within an epoch, too; here of six steps, with a milestone in the middle of the second."""
    recipe = replace(RECIPE, one_cycle=one_cycle, milestones=(0.75,))
    trainer, rates = build("two-step-pgm", recipe=recipe), []
    step = trainer.game.step

    def noting(batch: Any) -> Any:
        rates.append(trainer.game.leader_opt.param_groups[0]["lr"])
        return step(batch)

    trainer.game.step = noting
    trainer.fit()
    assert rates == pytest.approx([recipe.lr * recipe.lr_factor(n / 6) for n in range(12)])
    assert [record["lr"] for record in trainer.progress.history] == rates[::6]


def test_a_resumed_run_keeps_its_learning_rate(build: Callable[..., Trainer]) -> None:
    """Whatever the one of its optimizer is when it is resumed."""
    build(recipe=replace(RECIPE, lr=0.2)).save()
    trainer = build(recipe=replace(RECIPE, lr=0.2))
    for group in trainer.game.leader_opt.param_groups:
        group["lr"] = 0.7
    trainer.resume()
    assert trainer.fit().history[0]["lr"] == pytest.approx(0.2)


def test_a_metric_that_is_not_measured(build: Callable[..., Trainer]) -> None:
    with pytest.raises(BilevelError, match=r"monitor is 'robust': .*'validation_robust'"):
        build(monitor="robust")


def test_while_a_checkpoint_waits_for_the_device_it_trains(
    build: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build("two-step-pgm")
    monkeypatch.setattr(trainer._windows, "check", lambda: 5.0)
    trainer.save()
    assert trainer.progress.elapsed == 5


def test_frozen_parts_in_eval_mode_stay_so(build: Callable[..., Trainer]) -> None:
    """As the statistics of a pretrained network; a part that learns is put into training mode."""
    trainer = build("two-step-pgm")
    leader = trainer.game.leader.eval()
    norms = [part for part in leader.modules() if isinstance(part, nn.BatchNorm2d)]
    means = [norm.requires_grad_(False).running_mean.clone() for norm in norms]
    trainer.fit()
    assert norms
    assert all(
        torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, means, strict=True)
    )
    assert {part for part in leader.modules() if not part.training} == set(norms)


def test_a_norm_in_eval_mode_stays_so_without_parameters_of_its_own(
    build: Callable[..., Trainer],
) -> None:
    trainer = build("two-step-pgm")
    leader = trainer.game.leader
    leader.model.norm = norm = nn.BatchNorm2d(1, affine=False).eval()
    set_training(leader)
    assert {part for part in leader.modules() if not part.training} == {norm}
    set_training(leader.eval())  # as a network that is loaded, with all parts in eval mode
    assert all(part.training for part in leader.modules())


@pytest.mark.parametrize(("images", "steps"), [(12, 3), (13, 3), (14, 4)])
def test_a_last_batch_of_one_image_is_left_out(build: Any, images: int, steps: int) -> None:
    """Batch normalisation would raise."""
    data = Splits(image_set(images), image_set(6), image_set(6))
    trainer = build("two-step-pgm", data=data, recipe=replace(RECIPE, epochs=1))
    trainer.fit()
    assert trainer.game.steps == trainer.steps_per_epoch == steps


@pytest.mark.parametrize("part", ["train", "validation"])
def test_labels_that_are_no_classes(build: Callable[..., Trainer], part: str) -> None:
    data = copy.deepcopy(build().data)
    getattr(data, part).labels[0] = -100
    with pytest.raises(BilevelError, match="the labels run from -100 to 2, but there are 3"):
        build(data=data)


def test_an_output_that_validation_cannot_read_is_found_before_training(
    build: Callable[..., Trainer],
) -> None:
    trainer = build()
    images = trainer.validation.images
    trainer.validation.images = replace(images, classes=(*images.classes, "one more"))
    before = torch.get_rng_state()
    with pytest.raises(BilevelError, match=r"output for 6 images is of shape \(6, 3\).* 4 classes"):
        trainer.fit()
    assert trainer.game.steps == 0
    assert not trainer.path.exists()
    assert torch.equal(torch.get_rng_state(), before)


def test_data_that_are_no_image_sets(build: Callable[..., Trainer]) -> None:
    batch = Batch(torch.rand(8, 1, 4, 4), torch.zeros(8, 4, 4))
    with pytest.raises(BilevelError, match=r"data is a list: .* give Splits\("):
        build(data=[batch])
    with pytest.raises(BilevelError, match=r"the train split is a Batch: .* attack\(…\) batch by"):
        build(data=Splits(batch, batch, batch))
