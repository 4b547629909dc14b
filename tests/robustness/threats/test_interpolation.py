"""Adversarial interpolation: the follower, the leader, and one step of the game by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bilevel import BilevelError, Detached, fgsm
from bilevel.robustness import (
    Attacker,
    Batch,
    InterpolatedLabels,
    Interpolation,
    Linf,
    Recipe,
    attack,
    build_model,
    compile_network,
    make_game,
    make_solver,
)
from bilevel.robustness.networks.compilation import is_compiled
from bilevel.robustness.threats.interpolation import PAIRINGS

EPS = 0.1


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    return Batch(torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 1, 2, 2, 0]))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return build_model("small-cnn", channels=1, classes=3)


def play(model: nn.Module, **settings: object) -> tuple[InterpolatedLabels, Interpolation]:
    follower = Interpolation(EPS, **settings)
    return InterpolatedLabels(model, follower, epsilon_y=0.5), follower


def distance(model: nn.Module, x: Tensor, batch: Batch) -> Tensor:
    """1 − cos of the pooled last layers, the partner being the batch read backwards."""
    model = copy.deepcopy(model).eval()
    return 1 - F.cosine_similarity(model.features(x), model.features(batch.x).flip(0).detach())


def test_the_objective_is_the_cosine_distance_of_the_pooled_last_layers(
    model: nn.Module, batch: Batch
) -> None:
    leader, follower = play(model.eval())
    delta = torch.zeros_like(batch.x).uniform_(-EPS, EPS)
    expected = distance(model, batch.x + delta, batch)
    torch.testing.assert_close(follower.objective(leader, delta, batch), expected)


@pytest.mark.parametrize(("sense", "closer"), [("min", True), ("max", False)])
def test_the_sign_decides_whether_images_move_toward_their_partners(
    model: nn.Module, batch: Batch, sense: str, closer: bool
) -> None:
    leader, follower = play(model, sense=sense, start=0.0)
    moved = batch.x + fgsm(EPS).solve(follower, leader, batch).value
    before, after = (distance(model, x, batch).mean() for x in (batch.x, moved))
    assert (after < before) == closer


def test_one_step_is_the_originals(model: nn.Module, batch: Batch) -> None:
    """X + U(±ε), then a sign step of size ε down the distance, clipped to the ball and the box."""
    leader, follower = play(model)
    torch.manual_seed(3)
    actual = batch.x + fgsm(EPS).solve(follower, leader, batch).value
    torch.manual_seed(3)
    noise = torch.empty_like(batch.x).uniform_(-EPS, EPS)
    start = (batch.x + noise).clamp(0, 1).requires_grad_()
    (slope,) = torch.autograd.grad(distance(model, start, batch).sum(), start)
    stepped = start.detach() - EPS * slope.sign()
    expected = (batch.x + (stepped - batch.x).clamp(-EPS, EPS)).clamp(0, 1)
    torch.testing.assert_close(actual, expected)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5))
def test_pairings(seed: int, count: int, classes: int) -> None:
    y = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    assert PAIRINGS["reversed"](y).tolist() == list(range(count))[::-1]
    assert sorted(PAIRINGS["next"](y).tolist()) == list(range(count))
    if count > 1:
        assert (PAIRINGS["next"](y) != torch.arange(count)).all()
    partner = PAIRINGS["other-class"](y)
    alone = (y == y[0]).all()
    assert (y[partner] == y).all() if alone else (y[partner] != y).all()


def test_of_another_class_the_next_image_is_taken(batch: Batch) -> None:
    assert PAIRINGS["other-class"](batch.y).tolist() == [1, 3, 3, 5, 5, 1]


@given(st.floats(0, 1), st.integers(2, 12), st.integers(0, 10**6))
def test_targets_are_probabilities_and_the_papers(share: float, classes: int, seed: int) -> None:
    y = torch.randint(classes, (7,), generator=torch.Generator().manual_seed(seed))
    leader = InterpolatedLabels(nn.Flatten(), Interpolation(EPS), epsilon_y=share)
    targets = leader.targets(Batch(torch.zeros(7, 1, 1, 1), y), classes)
    torch.testing.assert_close(targets.sum(1), torch.ones(7))
    for i, j in enumerate(reversed(range(7))):
        for k in range(classes):
            expected = (1 - share) * (k == y[i]) + share * (k != y[j]) / (classes - 1)
            assert targets[i, k].item() == pytest.approx(expected.item())


def test_the_leader_steps_on_the_answer_held_constant(model: nn.Module, batch: Batch) -> None:
    """One step of AIT against the same step by hand: Algorithm 2."""
    twin = copy.deepcopy(model)
    leader, follower = play(model, start=0.0)
    recipe = Recipe(lr=0.1, weight_decay=0.0)
    make_game(leader, follower, fgsm(EPS), recipe, adjoint=Detached()).step(batch)

    other, _ = play(twin, start=0.0)
    moved = batch.x + fgsm(EPS).solve(follower, other, batch).value
    own, partner = F.one_hot(batch.y, 3).float(), F.one_hot(batch.y, 3).float().flip(0)
    targets = 0.5 * own + 0.5 * (1 - partner) / 2
    loss = -(targets * twin(moved).log_softmax(1)).sum(1).mean()
    loss.backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad)


@pytest.mark.parametrize("method", ["grad-l2l", "two-step-l2l"])
def test_a_learned_follower_comes_closer_than_it_began(
    model: nn.Module, batch: Batch, method: str
) -> None:
    """Algorithm 4: against a leader that stands still, the attacker learns to interpolate."""
    leader, follower = play(model)
    solver = make_solver(method, eps=EPS, channels=1, attacker=Attacker("two-layer", 16))
    game = make_game(leader, follower, solver, Recipe(attacker_lr=0.01), adjoint=Detached())
    distances = []
    for _ in range(30):
        solution = game.solve(batch)
        distances.append(follower.objective(leader, solution.value, batch).mean().item())
        game.move_solver(solution.value, batch)
    assert distances[-1] < 0.9 * distances[0]


def test_an_attacker_that_interpolates_is_an_attack(model: nn.Module, batch: Batch) -> None:
    follower = Interpolation(EPS)
    moved = attack(model, follower, fgsm(EPS), batch).x
    assert (moved - batch.x).abs().max() <= EPS + 1e-6


def test_another_layer(model: nn.Module, batch: Batch) -> None:
    leader, follower = play(model.eval(), layer="head")
    logits = model(batch.x)
    expected = 1 - F.cosine_similarity(logits, logits.flip(0))
    actual = follower.objective(leader, torch.zeros_like(batch.x), batch)
    torch.testing.assert_close(actual, expected)
    assert not leader.model.head._forward_hooks


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 36)])
def test_a_layer_after_it_may_compute_in_place(batch: Batch, shape: tuple[int, ...]) -> None:
    """As the ReLU after ``features`` of torchvision's DenseNet does."""
    first = nn.Sequential(
        nn.Flatten(), nn.Linear(batch.x[0].numel(), 36), nn.Unflatten(1, shape[1:])
    )
    rest = nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 3)
    leader, follower = play(nn.Sequential(first, *rest), layer="0")
    features = first(batch.x)
    features = features.flatten(2).mean(2) if len(shape) > 2 else features
    expected = 1 - F.cosine_similarity(features, features.flip(0))
    delta = torch.zeros_like(batch.x, requires_grad=True)
    actual = follower.objective(leader, delta, batch)
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()
    assert delta.grad is not None


def test_features_of_sequences_are_pooled_too(batch: Batch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 60, 3))
    leader, follower = play(model, layer="1")
    features = model[:2](batch.x).mean(2)
    expected = 1 - F.cosine_similarity(features, features.flip(0))
    actual = follower.objective(leader, torch.zeros_like(batch.x), batch)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("layer", ["trunk", "trunk.0"])
def test_a_classifier_compiled_before_it_is_asked_for_its_features(
    model: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    """As by validation under L∞: the graph knows nothing of the hook, and fits the images."""
    leader, follower = play(model.eval(), start=0.0, layer=layer)
    expected = fgsm(EPS).solve(follower, leader, batch).stats["objective_after"]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compile_network(model)
    fgsm(EPS).solve(Linf(EPS), leader, batch)
    actual = fgsm(EPS).solve(follower, leader, batch).stats["objective_after"]
    assert is_compiled(model)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("method", "passes"), [("fgsm", 3), ("two-step-l2l", 7)])
def test_every_pass_of_a_step_is_compiled(
    model: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch, method: str, passes: int
) -> None:
    """Of the solve too, which needs the features and not the logits."""
    compiled = []

    def backend(graph: nn.Module, inputs: object) -> Callable[..., Any]:
        return lambda *values: (compiled.append(1), graph(*values))[1]

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    leader, follower = play(model)
    compile_network(model)
    solver = make_solver(method, eps=EPS, channels=1, attacker=Attacker("two-layer", 16))
    make_game(leader, follower, solver, Recipe(), adjoint=Detached()).step(batch)
    assert len(compiled) == passes


def test_an_image_broken_on_the_way_counts_as_broken(model: nn.Module, batch: Batch) -> None:
    """With ``keep_broken``, which watches the logits at the points where features are compared."""
    seen: list[Tensor] = []
    leader, follower = play(model.eval(), start=0.0)
    expected = follower.objective(leader, torch.zeros_like(batch.x), batch)
    model.register_forward_hook(lambda model, inputs, logits: seen.append(logits))
    actual = follower.objective(leader, torch.zeros_like(batch.x), batch)
    assert [logits.shape for logits in seen] == [(6, 3)] * 2
    torch.testing.assert_close(actual, expected)


def test_bad_input_is_told(model: nn.Module, batch: Batch) -> None:
    with pytest.raises(BilevelError, match=r"pairing is 'twins'.*'next', 'other-class'"):
        Interpolation(EPS, pairing="twins")
    with pytest.raises(BilevelError, match=r"epsilon_y is 1.5: .*0 to 1"):
        InterpolatedLabels(model, Interpolation(EPS), epsilon_y=1.5)
    leader, follower = play(model, layer="trunc")
    with pytest.raises(BilevelError, match=r"no layer 'trunc'.*normalize, trunk, head"):
        follower.objective(leader, torch.zeros_like(batch.x), batch)
    model.spare = nn.Identity()
    leader, follower = play(model, layer="spare")
    with pytest.raises(BilevelError, match=r"layer 'spare' is never called"):
        follower.objective(leader, torch.zeros_like(batch.x), batch)
    leader = InterpolatedLabels(nn.Flatten(), follower, epsilon_y=0.5)
    with pytest.raises(BilevelError, match=r"has one logit.*no label be learned"):
        leader.loss(torch.zeros(2, 1, 1, 1), Batch(torch.zeros(2, 1, 1, 1), torch.tensor([0, 0])))
