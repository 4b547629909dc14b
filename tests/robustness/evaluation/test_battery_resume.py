"""A resumed `Battery`: bit for bit the same, and never with the state of another evaluation."""

from __future__ import annotations

import time
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import BilevelError, Iterative, pgm
from bilevel.experiment.checkpoint import OtherRunError
from bilevel.robustness import (
    Attack,
    Batch,
    Battery,
    FreshAttack,
    ImageSet,
    Linf,
    SolverAttack,
)
from bilevel.robustness.threats.losses import margin
from bilevel.updates import CNN, Update
from tests.robustness.evaluation.scripted import EPS, Scripted, Threshold, noisy


@pytest.mark.parametrize("stopped_after", range(1, 9))
def test_an_interrupted_battery_goes_on_bit_for_bit(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    """The time included, by a clock that ticks when it is read."""
    monkeypatch.setattr(time, "perf_counter", count().__next__)
    straight = Battery(noisy(), eps=EPS, batch_size=10).run(Threshold(), images)
    calls = 0

    def stop(name: str, done: float, total: float) -> None:
        nonlocal calls
        calls += 1
        if calls == stopped_after:
            raise KeyboardInterrupt

    path = tmp_path / "battery.pt"
    settings = {"eps": EPS, "batch_size": 10, "path": path}
    with pytest.raises(KeyboardInterrupt):
        Battery(noisy(), report=stop, **settings).run(Threshold(), images)
    torch.manual_seed(99)
    resumed = Battery(noisy(), **settings).run(Threshold(), images, resume=True)
    for one, other in zip(straight[1], resumed[1], strict=True):
        assert torch.equal(one.attacked, other.attacked)
        assert torch.equal(one.broken, other.broken)
        assert one.seconds == other.seconds > 0


def test_a_finished_battery_is_not_run_again(images: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "battery.pt"
    Battery([Scripted("one", set())], eps=EPS, path=path).run(Threshold(), images)
    again = Scripted("one", set())
    Battery([again], eps=EPS, path=path).run(Threshold(), images, resume=True)
    assert again.seen == []
    assert not again.prepared
    Battery([again], eps=EPS, path=path).run(Threshold(), images)
    assert again.seen != []


def test_without_a_file_there_is_nothing_to_resume(images: ImageSet) -> None:
    attack = Scripted("one", set())
    Battery([attack], eps=EPS).run(Threshold(), images, resume=True)
    assert attack.seen != []


def test_what_an_attack_prepares_depends_on_the_seed_alone(images: ImageSet) -> None:
    """A resumed battery prepares it again."""

    class Trained(Scripted):
        def prepare(self, model: nn.Module) -> None:
            self.weight = torch.rand(()).item()

    weights = []
    for before, seed in ((0, 0), (1, 0), (1, 1)):
        torch.manual_seed(before)
        attacks = [Trained(name, set()) for name in "ab"]
        Battery(attacks, eps=EPS, seed=seed).run(Threshold(), images)
        weights.append(tuple(attack.weight for attack in attacks))
    assert weights[0] == weights[1]
    assert len({*weights[0], *weights[2]}) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eps": 0.1}, "epsilon"),
        ({"norm": "l2"}, "norm"),
        ({"seed": 1}, "seed"),
        ({"attacks": [Scripted("other", set())]}, "attacks"),
        ({"attacks": [Scripted("one", set(), alone=True)]}, "alone"),
        ({"attacks": [Scripted("one", set(), sample=9)]}, "samples"),
    ],
)
def test_another_evaluation_is_not_resumed(
    images: ImageSet, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    settings = {"attacks": [Scripted("one", set())], "eps": EPS, "path": tmp_path / "battery.pt"}
    Battery(**settings).run(Threshold(), images)
    with pytest.raises(BilevelError, match=f"is a run with {named} = .*another --out"):
        Battery(**settings | change).run(Threshold(), images, resume=True)


class Scaled(Threshold):
    """Right on the same images as any other of its kind."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


def test_another_classifier_or_other_images_are_not_resumed(
    images: ImageSet, tmp_path: Path
) -> None:
    """Even where it gets the same images right."""
    battery = Battery([Scripted("one", set())], eps=EPS, path=tmp_path / "battery.pt")
    battery.run(Scaled(1.0), images)
    with pytest.raises(OtherRunError, match=r"battery.pt is a run with classifier = "):
        battery.run(Scaled(2.0), images, resume=True)
    changed = ImageSet(images.images.clamp(min=9), images.labels, images.classes)
    with pytest.raises(OtherRunError, match="is a run with images = "):
        battery.run(Scaled(1.0), changed, resume=True)


class Rounding(Threshold):
    """Without weights: right on the same images as any other of its kind."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels


def test_a_classifier_with_other_settings_is_not_resumed(images: ImageSet, tmp_path: Path) -> None:
    battery = Battery([Scripted("one", set())], eps=EPS, path=tmp_path / "battery.pt")
    for model in (Rounding(2), nn.Sequential(Rounding(2))):
        battery.run(model, images)
        battery.run(model, images, resume=True)
        model.get_submodule("0" if isinstance(model, nn.Sequential) else "").levels = 255
        with pytest.raises(OtherRunError, match="is a run with settings of the classifier = "):
            battery.run(model, images, resume=True)


def test_another_attacker_of_the_same_kind_is_not_resumed(images: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "battery.pt"
    for seed, error in ((0, nullcontext()), (1, pytest.raises(BilevelError, match="attacks"))):
        torch.manual_seed(seed)
        attacker = Iterative(CNN(1, EPS, form="two-layer", width=4), 1)
        battery = Battery([SolverAttack("own", Linf(EPS), attacker)], eps=EPS, path=path)
        with error:
            battery.run(Threshold(), images, resume=True)


class Weighted(nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.weight * margin(logits, batch)


def test_another_loss_of_the_same_kind_is_not_resumed(images: ImageSet, tmp_path: Path) -> None:
    path, refused = tmp_path / "battery.pt", pytest.raises(BilevelError, match="attacks")
    for weight, error in ((1.0, nullcontext()), (2.0, refused)):
        attack = SolverAttack("weighted", Linf(EPS, loss=Weighted(weight)), pgm(EPS, 1))
        with error:
            Battery([attack], eps=EPS, path=path).run(Threshold(), images, resume=True)


def test_attacks_are_known_by_the_settings_of_their_loss_and_surrogate() -> None:
    class Powered(Threshold):
        def __init__(self, power: int) -> None:
            super().__init__()
            self.power = power

        def forward(self, x: Tensor, batch: object = None) -> Tensor:
            return super().forward(x**self.power)

    def attack_with(part: str, power: int) -> SolverAttack:
        network = Powered(power)
        if part == "loss":
            return SolverAttack("mine", Linf(EPS, loss=network), pgm(EPS, 1))
        return SolverAttack("mine", Linf(EPS), pgm(EPS, 1), surrogate=network)

    for part in ("loss", "surrogate"):
        assert attack_with(part, 1).settings == attack_with(part, 1).settings
        assert attack_with(part, 1).settings != attack_with(part, 3).settings


def test_a_fresh_attacker_is_known_by_its_network_its_images_and_its_loss(images: ImageSet) -> None:
    def settings(width: int, images: ImageSet, weight: float = 1.0) -> tuple[str, ...]:
        def make() -> Iterative:
            return Iterative(CNN(1, EPS, form="two-layer", width=width), 1)

        return FreshAttack("fresh", Linf(EPS, loss=Weighted(weight)), make, images).settings

    fewer = images.subset(range(9))
    assert settings(4, images) == settings(4, images)
    others = settings(8, images), settings(4, fewer), settings(4, images, 2.0)
    assert len({settings(4, images), *others}) == 4


class Masked(Linf):
    """Where the mask is 0, no pixel changes."""

    reach = 1.0

    def __init__(self, eps: float, mask: Tensor, **settings: Any) -> None:
        super().__init__(eps, **settings)
        self.mask = mask

    def clip(self, delta: Tensor) -> Tensor:
        return super().clip(delta) * self.mask * self.reach


class Short(Masked):
    reach = 0.5


class Own(Update):
    """Its step is an attribute that its repr does not show."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, y: Any, gradient: Any, context: Any, state: Any) -> Any:
        return y + self.step * gradient.sign(), state


def own(step: float = 0.1, kind: type[Masked] = Masked, hole: int = 0, factor: float = 1) -> Attack:
    mask = torch.ones(40, 40)
    mask[20, 20] = hole
    follower = kind(EPS, mask, loss=lambda logits, batch: factor * margin(logits, batch))
    return SolverAttack("own", follower, Iterative(Own(step), 2))


@pytest.mark.parametrize(
    "other", [{"step": 0.2}, {"kind": Short}, {"hole": 1}, {"factor": 2}], ids=str
)
def test_attacks_are_known_by_all_that_they_compute_with(other: dict[str, Any]) -> None:
    assert own().settings == own().settings != own(**other).settings


@pytest.mark.parametrize(
    "other",
    [
        SolverAttack("PGM", Linf(EPS, start=EPS), pgm(0.01, 3), restarts=2),
        SolverAttack("PGM", Linf(EPS), pgm(0.01, 3)),
        SolverAttack("PGM", Linf(EPS - 1e-9, start=EPS), pgm(0.01, 3)),
        SolverAttack("PGM", Linf(EPS, start=EPS, loss=margin), pgm(0.01, 3)),
        SolverAttack("PGM", Linf(EPS, start=EPS), pgm(0.02, 3)),
    ],
)
def test_attacks_of_one_name_are_told_apart(
    images: ImageSet, tmp_path: Path, other: Attack
) -> None:
    settings = {"eps": EPS, "path": tmp_path / "battery.pt"}
    attack = SolverAttack("PGM", Linf(EPS, start=EPS), pgm(0.01, 3))
    Battery([attack], **settings).run(Threshold(), images)
    with pytest.raises(BilevelError, match="is a run with attacks = "):
        Battery([other], **settings).run(Threshold(), images, resume=True)


def test_an_attack_that_could_not_run_is_tried_again(images: ImageSet, tmp_path: Path) -> None:
    """Its memory may be free now, or its package installed; what it has attacked is kept."""

    class Short(Scripted):
        memory = False

        def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
            if len(self.seen) == 1 and not self.memory:
                raise torch.OutOfMemoryError("no memory")
            return super().perturb(model, batch, attempt)

    attack = Short("short", set())
    made = lambda: Battery([attack], eps=EPS, batch_size=10, path=tmp_path / "b.pt")  # noqa: E731
    _, (outcome,) = made().run(Threshold(), images)
    assert "no memory" in outcome.problem
    attack.memory = True
    _, (outcome,) = made().run(Threshold(), images, resume=True)
    assert outcome.problem == ""
    straight = Scripted("short", set())
    Battery([straight], eps=EPS, batch_size=10).run(Threshold(), images)
    assert attack.seen == straight.seen
