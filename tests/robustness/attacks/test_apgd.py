"""APGD: corners and minima in closed form, and the authors' code from the same start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bilevel import BilevelError, Oracle, ZeroSum, testing
from bilevel.robustness import (
    APGD,
    L2,
    Batch,
    Classifier,
    Linf,
    Perturbation,
    SolverAttack,
    attack,
    batches,
)
from bilevel.robustness.attacks.apgd import _checkpoints
from bilevel.robustness.threats.losses import Loss, cross_entropy, dlr, margin, targeted_dlr
from tests.digits import EPS, trained
from tests.problems import Nearest, Weights, image_game
from tests.robustness.attacks.linear import LinearClassifier, greys


def doubles(rows: Sequence[int]) -> tuple[Classifier, Batch]:
    """A trained classifier and test images in double precision."""
    model, _, test = trained()
    batch = next(batches(test.subset(rows), len(rows)))
    return model.double().requires_grad_(False), Batch(batch.x.double(), batch.y)


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.25])
@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_the_corner_of_a_linear_classifier(eps: float, loss: Loss) -> None:
    """From the centre: a pixel of weight zero stays there."""
    model, batch = LinearClassifier(torch.randn(1, 4, 4).round()), greys(20)
    follower = Linf(eps, loss=loss)
    answer = APGD(steps=10).solve(follower, ZeroSum(model, follower), batch).value
    torch.testing.assert_close(answer, eps * model.worst(batch))


@pytest.mark.parametrize("eps", [0.05, 0.25])
def test_the_nearest_point_of_the_ball_in_l2(eps: float) -> None:
    """Along the weights of a linear classifier, to the edge."""
    model, batch = LinearClassifier(torch.randn(1, 4, 4)), greys(20)
    answer = APGD(steps=10).solve(L2(eps), ZeroSum(model, L2(eps)), batch).value
    along = model.worst(batch) * model.w.abs()
    torch.testing.assert_close(answer, eps * along / model.w.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_reaches_the_corner_too(dtype: torch.dtype) -> None:
    model, batch = LinearClassifier(torch.randn(1, 4, 4).round()).to(dtype), greys(20)
    follower, batch = Linf(0.25), Batch(batch.x.to(dtype), batch.y)
    answer = APGD(steps=10).solve(follower, ZeroSum(model, follower), batch).value
    assert answer.dtype == dtype
    expected = 0.25 * model.worst(batch)
    torch.testing.assert_close(answer, expected, rtol=0, atol=torch.finfo(dtype).eps)


class Unclipped(Linf):
    """A radius without a ball."""

    def clip(self, delta: Tensor) -> Tensor:
        return delta


@pytest.mark.parametrize("eps", [0.05, 0.1])
def test_the_first_step_is_twice_the_followers_radius(eps: float) -> None:
    """An attack with a radius of its own could be weaker than its threat model allows."""
    model, batch = LinearClassifier(torch.randn(1, 4, 4)), greys(20)
    follower = Unclipped(eps)
    answer = APGD(steps=1).solve(follower, ZeroSum(model, follower), batch).value
    torch.testing.assert_close(answer, 2 * eps * model.worst(batch))


class Near(Linf):
    """:class:`Nearest`, whose first step has size 2."""

    sense = "min"

    def __init__(self) -> None:
        super().__init__(1.0)

    def project(self, y: Tensor, batch: Batch) -> Tensor:
        return y

    def objective(self, leader: Weights, y: Tensor, batch: Batch) -> Tensor:
        return Nearest().objective(leader, y, batch)


def test_the_step_size_shrinks_where_it_overshoots() -> None:
    """Steps of constant size 2 would jump over the minimum for ever."""
    batch = Batch(torch.rand(50, 3), torch.zeros(50))
    leader = Weights(3)
    answer = APGD(steps=200).solve(Near(), leader, batch).value
    errors = (answer - (leader.w * batch.x).detach()).abs().amax(1)
    assert errors.max() < 2 / 2**6


RADIUS = {Linf: EPS, L2: 0.7}
BOTH = pytest.mark.parametrize("threat", [Linf, L2])


@BOTH
@pytest.mark.parametrize("rho", [0.75, 0.5, 0.0])
def test_algorithm_1_as_the_paper_prints_it(rho: float, threat: type[Perturbation]) -> None:
    model, batch = doubles([10, 12, 14, 15])  # whose last step is not their best
    follower = threat(RADIUS[threat], loss=dlr)
    leader = ZeroSum(model, follower)
    together = APGD(rho=rho).solve(follower, leader, batch).value
    for answer, *one in zip(together.split(1), batch.x.split(1), batch.y.split(1), strict=True):
        expected = algorithm_1(Oracle(follower, leader, Batch(*one)), follower, rho)
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-9)


def algorithm_1(oracle: Oracle, follower: Perturbation, rho: float) -> Tensor:
    """For one sample and 100 steps, of which the paper's formula makes these checkpoints w_j."""
    checkpoints, eta, xs = [0, 22, 41, 57, 70, 80, 87, 93, 99], [2 * follower.eps], [oracle.init()]
    f = [float(oracle.gain(xs[0]))]
    best = [(f[0], xs[0])]
    for k in range(100):
        g = oracle.gradient(xs[k])
        direction = g.sign() if isinstance(follower, Linf) else g / g.norm()
        z = oracle.project(xs[k] + eta[-1] * direction)
        step = 0.75 * (z - xs[k]) + 0.25 * (xs[k] - xs[k - 1]) if k else z - xs[k]
        xs.append(oracle.project(xs[k] + step))
        f.append(float(oracle.gain(xs[-1])))
        best.append(max(best[-1], (f[-1], xs[-1]), key=lambda point: point[0]))
        eta.append(eta[-1])
        if k + 1 in checkpoints:
            last = checkpoints[checkpoints.index(k + 1) - 1]
            rises = sum(f[i + 1] > f[i] for i in range(last, k + 1))
            unchanged = eta[max(last - 1, 0)] == eta[k] and best[last][0] == best[k + 1][0]
            if rises < rho * (k + 1 - last) or unchanged:
                eta[-1], (f[-1], xs[-1]) = eta[-1] / 2, best[-1]
    return best[-1][1]


@settings(deadline=None, max_examples=20)
@given(
    threat=st.sampled_from([Linf, L2]),
    eps=st.floats(0.0, 1.0),
    steps=st.integers(1, 15),
    rho=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
def test_the_answer_lies_in_ball_and_box_and_is_no_worse_than_the_start(
    threat: type[Perturbation], eps: float, steps: int, rho: float, seed: int
) -> None:
    torch.manual_seed(seed)
    leader, _, batch = image_game()
    leader.eval()
    follower = threat(eps, start=eps)
    torch.manual_seed(seed)
    start = follower.init(batch)
    torch.manual_seed(seed)
    answer = APGD(steps=steps, rho=rho).solve(follower, leader, batch).value
    assert follower.norm(answer).max() <= eps + 1e-6
    assert ((batch.x + answer - 0.5).abs() <= 0.5 + 1e-6).all()
    oracle = Oracle(follower, leader, batch)
    assert (oracle.gain(answer) >= oracle.gain(start) - 1e-6).all()


@BOTH
def test_it_keeps_what_a_game_relies_on(threat: type[Perturbation]) -> None:
    leader, follower, batch = image_game()
    testing.check_solver(APGD(steps=12), threat(follower.eps, start=0.1), leader, batch)


@pytest.mark.parametrize(("threat", "eps"), [(Linf, 0.25), (L2, 1.0)])
@pytest.mark.parametrize(("name", "loss"), [("ce", cross_entropy), ("dlr", dlr)])
def test_the_points_of_the_authors_code(
    name: str, loss: Loss, threat: type[Perturbation], eps: float
) -> None:
    """From one start, in double precision, the very same images.

    Not all of them: the authors' code counts rises across a restart, the paper from the restart on.
    """
    base = pytest.importorskip("pyautoattack.autopgd_base")
    model, batch = doubles(range(20))  # eps is exact in the single precision of theirs
    follower = threat(eps, start=eps, loss=loss)
    torch.manual_seed(1)
    start = follower.init(batch)
    torch.manual_seed(1)
    ours = batch.x + APGD().solve(follower, ZeroSum(model, follower), batch).value
    theirs = base.APGDAttack(model, n_iter=100, norm=threat.__name__, eps=eps, loss=name)
    theirs.init_hyperparam(batch.x)
    expected = theirs.attack_single_run(batch.x, batch.y, x_init=batch.x + start)[0]
    same = (ours - expected).abs().flatten(1).amax(1) < 1e-9
    assert same.double().mean() > (0.6 if threat is Linf else 0.2)  # L2 restarts more often


ATTACKS: dict[str, tuple[Loss, dict[str, Any], int, int]] = {
    "ce": (cross_entropy, {}, 20, 359),
    "targeted dlr": (targeted_dlr, {"targets": 9}, 10, 240),
}


@BOTH
@pytest.mark.parametrize("name", ATTACKS)
def test_the_accuracy_that_is_left(name: str, threat: type[Perturbation]) -> None:
    """Within two points of the authors' code, from other random starts."""
    base = pytest.importorskip("pyautoattack.autopgd_base")
    loss, tries, steps, count = ATTACKS[name]
    network, _, test = trained()
    model, batch = network.requires_grad_(False), next(batches(test, count))
    eps = RADIUS[threat]
    ours = SolverAttack("APGD", threat(eps, start=eps, loss=loss), APGD(steps=steps), **tries)
    settings = {"n_iter": steps, "norm": threat.__name__, "eps": eps}
    if tries:
        theirs = base.APGDAttack_targeted(model, **settings)
    else:
        theirs = base.APGDAttack(model, loss=name, **settings)
    left = worst_of(ours, model, batch)
    expected = accuracy(model, theirs.perturb(batch.x, batch.y), batch)
    assert abs(left - expected) <= 0.02
    assert left < accuracy(model, batch.x, batch) - 0.4


def worst_of(attack: SolverAttack, model: Classifier, batch: Batch) -> float:
    """The accuracy after all tries, each on the images that are still right."""
    right = model(batch.x).argmax(1) == batch.y
    for attempt in range(attack.tries):
        alive = Batch(batch.x[right], batch.y[right])
        images = attack.perturb(model, alive, attempt)
        right[right.clone()] = model(images).argmax(1) == alive.y
    return float(right.float().mean())


def accuracy(model: Callable[[Tensor], Tensor], images: Tensor, batch: Batch) -> float:
    return float((model(images).argmax(1) == batch.y).float().mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0: .* give 1, 2"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": True}, "steps is True"),
        ({"rho": 1.5}, "rho is 1.5: .* 0 ≤ rho ≤ 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BilevelError, match=message):
        APGD(**arguments)


def test_the_number_of_steps_may_be_one_of_numpy() -> None:
    assert APGD(steps=np.int64(3)).steps == 3


def test_the_checkpoints_of_the_authors_code() -> None:
    assert _checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99, 100]
    assert _checkpoints(10) == [0, 3, 5, 6, 7, 8, 9, 10]


class Graph(Linf):
    """Each node reads its neighbours' features, too."""

    def __init__(self, edges: Tensor) -> None:
        super().__init__(0.3, bounds=None)
        self.edges = edges

    def objective(self, leader: ZeroSum, delta: Tensor, batch: Batch) -> Tensor:
        first, last = leader.model
        hidden = first(self.edges @ (batch.x + delta)).relu()
        return F.cross_entropy(last(self.edges @ hidden), batch.y, reduction="none")


class Noisy(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + 0.5 * torch.randn(len(x), 3)


def test_samples_that_depend_on_each_other() -> None:
    """The best features of each node are of different iterations, and worse together."""
    torch.manual_seed(0)
    labels = torch.randint(3, (40,))
    edges = (torch.rand(40, 40) < 0.1).float() + torch.eye(40)
    threat = Graph(edges / edges.sum(1, keepdim=True))
    batch = Batch(torch.randn(40, 8) + F.one_hot(labels, 8), labels)
    network = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3))
    leader, adam = ZeroSum(network, threat), torch.optim.Adam(network.parameters(), 0.03)
    for _ in range(100):
        adam.zero_grad()
        leader.loss(torch.zeros_like(batch.x), batch).backward()
        adam.step()
    with pytest.warns(UserWarning, match=r"Graph.objective of a sample depends on the others"):
        attack(network, threat, APGD(steps=30), batch)
    # No warning of independent samples, or of noise.
    attack(Noisy(network), Linf(0.3, bounds=None), APGD(steps=30), batch)


def test_kernels_that_round_otherwise_without_gradients() -> None:
    """Attention in evaluation mode, at a radius at which nothing is gained."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))
    batch = Batch(torch.randn(3, 5, 8), torch.arange(3))
    attack(network, Linf(0.0, bounds=None), APGD(steps=5), batch)
