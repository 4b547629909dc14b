"""Perturbations that are kept for each image, in the place of the image before it was augmented."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel import Bilevel, BilevelError, Oracle, Solver, ZeroSum, pgm
from bilevel.robustness import (
    L1,
    L2,
    Augment,
    Batch,
    Linf,
    Memory,
    Perturbation,
    TrackedBatch,
    shuffled_batches,
)
from tests.images import image_set
from tests.problems import BatchNormNet

IMAGES = image_set(7)


@settings(max_examples=25, deadline=None)
@given(padding=st.integers(0, 5), flip=st.booleans(), seed=st.integers(0, 1000))
def test_what_a_crop_shows_is_read_as_it_was_written(padding: int, flip: bool, seed: int) -> None:
    """By a batch of other images in the same places; the border of padded crops shows none."""
    augment, rng = Augment(padding, flip=flip), np.random.default_rng(seed)
    memory = Memory(IMAGES, augment)
    drawn, rows = augment.draw(3, rng), torch.from_numpy(rng.permutation(7)[:3])
    crops = torch.rand(3, 1, 4, 4).half()
    batch = TrackedBatch(torch.zeros(3, 1, 4, 4), torch.zeros(3).long(), rows, drawn)
    memory.write(crops, batch)
    inside = augment(torch.ones(3, 1, 4, 4), drawn)
    assert torch.equal(memory.read(batch), crops.float() * inside)
    untouched = sorted({*range(7)} - {*rows.tolist()})
    assert not memory.answers[untouched].any()


def test_what_a_crop_does_not_show_stays() -> None:
    memory, left, right = (
        Memory(IMAGES, Augment(1, flip=False)),
        *(
            TrackedBatch(torch.zeros(1, 1, 4, 4), torch.tensor([0]), torch.tensor([2]), drawn)
            for drawn in (torch.tensor([[1], [0], [0]]), torch.tensor([[1], [2], [0]]))
        ),
    )
    memory.write(torch.full((1, 1, 4, 4), 0.5), left)
    memory.write(torch.full((1, 1, 4, 4), 0.25), right)
    assert memory.answers[2, 0].tolist() == 4 * [[0.5, 0.25, 0.25, 0.25]]


@pytest.mark.parametrize("augment", [None, Augment(1)])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(1.0)], ids=repr)
def test_attacks_in_a_second_epoch_start_where_those_of_the_first_have_ended(
    threat: Perturbation, augment: Augment | None
) -> None:
    """Also of another order, and differently augmented."""
    threat = type(threat)(threat.eps)
    threat.memory = Memory(IMAGES, augment)
    leader = ZeroSum(BatchNormNet().requires_grad_(False), threat)
    game = Bilevel(leader, threat, threat.pgm(threat.eps / 2, 1), leader_opt=None)
    epochs = [
        shuffled_batches(IMAGES, 3, seed=0, epoch=epoch, augment=augment, tracked=True)
        for epoch in (0, 1)
    ]
    for batch in epochs[0]:
        assert not threat.init(batch).any()
        game.step(batch)
    answers = threat.memory.answers.clone()
    assert answers.any()
    for batch in epochs[1]:
        start = answers[batch.rows].float()
        if augment:
            start = augment(start, batch.drawn)
        assert torch.equal(threat.init(batch), threat.project(start, batch))
        game.step(batch)
    assert not torch.equal(threat.memory.answers, answers)


def test_steps_of_many_epochs_are_one_attack_of_as_many() -> None:
    """Of a leader that stays, up to the half precision between them."""
    threat = Linf(0.25)
    threat.memory = Memory(IMAGES, None)
    leader = ZeroSum(BatchNormNet().requires_grad_(False), threat)
    game = Bilevel(leader, threat, pgm(0.0625, 2), leader_opt=None)
    for epoch in range(3):
        for batch in shuffled_batches(IMAGES, 3, seed=0, epoch=epoch, tracked=True):
            game.step(batch)
    (whole,) = shuffled_batches(IMAGES, 7, seed=0, epoch=9, tracked=True)
    expected = pgm(0.0625, 6).solve(Linf(0.25), leader, whole).value
    found = threat.memory.answers[whole.rows].float()
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_other_batches_are_attacked_anew(start: float) -> None:
    threat = Linf(0.1, start=start)
    threat.memory = Memory(IMAGES, None)
    threat.memory.answers.fill_(0.05)
    batch = Batch(torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1]))
    delta = threat.init(batch)
    assert bool(delta.any()) == (start > 0)
    threat.keep(torch.ones_like(delta), batch)
    assert torch.equal(threat.memory.answers, torch.full((7, 1, 4, 4), 0.05).half())


class FromNoise(Linf):
    """Starts at random whatever the last answer was."""

    def init(self, batch: TrackedBatch) -> torch.Tensor:
        return self.project(self.noise(batch.x), batch)


class FromHalf(Linf):
    """Starts at half of the last answer."""

    def init(self, batch: TrackedBatch) -> torch.Tensor:
        return super().init(batch) / 2


@pytest.mark.parametrize(("kind", "reads"), [(FromNoise, False), (FromHalf, True)])
def test_an_init_of_ones_own_that_reads_no_memory_is_told(kind: type[Linf], reads: bool) -> None:
    threat = kind(0.1, start=0.1)
    threat.memory = Memory(IMAGES, None)
    leader = ZeroSum(BatchNormNet().requires_grad_(False), threat)
    game = Bilevel(leader, threat, pgm(0.05, 1), leader_opt=None)
    (batch,) = shuffled_batches(IMAGES, 7, seed=0, epoch=0, tracked=True)
    told = pytest.raises(BilevelError, match="nothing reads the memory of FromNoise: its init")
    with nullcontext() if reads else told:
        game.step(batch)
    assert bool(threat.memory.answers.any()) == reads


class FromZero(Solver):
    """Starts at δ = 0 whatever the follower's start is."""

    def answer(self, oracle: Oracle) -> torch.Tensor:
        return oracle.project(0.1 * oracle.gradient(torch.zeros_like(oracle.batch.x)).sign())


def test_a_solver_that_starts_elsewhere_is_told() -> None:
    threat = Linf(0.1)
    threat.memory = Memory(IMAGES, None)
    leader = ZeroSum(BatchNormNet().requires_grad_(False), threat)
    game = Bilevel(leader, threat, FromZero(), leader_opt=None)
    (batch,) = shuffled_batches(IMAGES, 7, seed=0, epoch=0, tracked=True)
    with pytest.raises(BilevelError, match=r"its init, or the solver, .* with oracle\.init\(\)"):
        game.step(batch)


def test_its_settings_are_shown_and_not_its_contents() -> None:
    threat, other = Linf(0.1), Linf(0.1)
    for one in (threat, other):
        one.memory = Memory(IMAGES, Augment(2))
    other.memory.answers.fill_(1)
    assert repr(threat) == repr(other)
    assert "memory=(Memory((7, 1, 4, 4), augment=Augment(padding=2, flip=True)))" in repr(threat)
    assert "memory" not in repr(Linf(0.1))


def written(rows: list[int], value: float) -> Memory:
    """What a process has after it was given a value for some images."""
    memory = Memory(IMAGES, None)
    memory.answers.fill_(0.125)  # from before
    x = torch.zeros(len(rows), 1, 4, 4)
    memory.write(x + value, TrackedBatch(x, torch.tensor(rows), torch.tensor(rows), None))
    return memory


class OfTwo:
    """Sums with what the other process contributes."""

    def __init__(self, other: Memory) -> None:
        self.other = other

    def all_reduce(self, tensors: list[torch.Tensor]) -> None:
        mine, count = tensors
        mine += self.other.answers * self.other.written.view(-1, 1, 1, 1)
        count += self.other.written


def test_processes_exchange_what_they_have_written_since_the_last_time() -> None:
    """Both have attacked the same images where a batch has fewer than there are processes."""
    first, second = written([0, 3], 0.5), written([3, 5], 0.5)
    first.merge(OfTwo(second))
    expected = torch.full((7,), 0.125)
    expected[[0, 3, 5]] = 0.5
    assert torch.equal(first.answers[:, 0, 1, 2].float(), expected)
    first.merge(OfTwo(written([0], 0.25)))  # the other process has the image now
    expected[0] = 0.25
    assert torch.equal(first.answers[:, 0, 1, 2].float(), expected)
