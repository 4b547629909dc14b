"""The oracle: norms of gradients, and its restriction to some samples of a batch."""

from __future__ import annotations

from collections import UserDict
from collections.abc import MutableMapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bilevel import BilevelError, FollowerProblem, Iterative, Oracle, ZeroSum
from bilevel.solvers.selection import select
from bilevel.updates import (
    CNN,
    MLP,
    CoordinateRNN,
    Gradient,
    Momentum,
    Optimizer,
    SignGradient,
    Update,
)
from tests.problems import Weights, image_game


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Product(FollowerProblem):
    """max over y_i of ⟨x_i, y_i⟩, whatever holds the x."""

    sense = "max"

    def init(self, batch: Any) -> Tensor:
        return torch.zeros_like(self.x(batch))

    def objective(self, leader: ZeroSum, y: Tensor, batch: Any) -> Tensor:
        return (self.x(batch) * y).sum(1)

    def x(self, batch: Any) -> Tensor:
        if isinstance(batch, Tensor):
            return batch
        return batch["x"] if isinstance(batch, dict | UserDict) else batch[0]


def oracle(batch: Any) -> Oracle:
    return Oracle(Product(), ZeroSum(nn.Identity(), Product()), batch)


X, LABELS = torch.arange(12.0).view(4, 3), torch.arange(4)
CHOSEN = torch.tensor([True, False, False, True])


@pytest.mark.parametrize(
    "batch",
    [
        X,
        (X, LABELS),
        [X, LABELS],
        Pair(X, LABELS),
        {"x": X, "y": LABELS},
        {"x": X, "more": (LABELS, Pair(X, LABELS))},
        UserDict(x=X, y=LABELS),
    ],
    ids=["tensor", "tuple", "list", "named tuple", "dict", "nested", "user dict"],
)
def test_it_answers_for_the_chosen_samples(batch: Any) -> None:
    whole = oracle(batch)
    some = whole.restricted(CHOSEN)
    y = torch.rand(4, 3)
    assert torch.equal(some.init(), whole.init()[CHOSEN])
    assert torch.equal(some.gain(y[CHOSEN]), whole.gain(y)[CHOSEN])
    assert torch.equal(some.gradient(y[CHOSEN]), whole.gradient(y)[CHOSEN])
    one = some.restricted(torch.tensor([False, True]))
    assert torch.equal(one.gain(y[3:]), whole.gain(y)[3:])


def test_every_part_of_the_batch_is_restricted() -> None:
    class Labels(Product):
        def objective(self, leader: ZeroSum, y: Tensor, batch: Pair) -> Tensor:
            return y.sum(1) + batch.y

    follower = Labels()
    whole = Oracle(follower, ZeroSum(nn.Identity(), follower), Pair(X, LABELS))
    assert whole.restricted(CHOSEN).gain(torch.zeros(2, 3)).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        ((X, torch.ones(10)), r"a Tensor of shape \(10,\)"),
        ((X, torch.ones(())), r"a Tensor of shape \(\)"),
        ((X, 0.5), "a float"),
        ({"x": X, "rows": range(4)}, "a range"),
    ],
)
def test_a_batch_that_has_no_row_a_sample(batch: Any, what: str) -> None:
    with pytest.raises(BilevelError, match=f"the batch holds {what}: .* 4 samples .* give"):
        oracle(batch).restricted(CHOSEN)


def test_gradients_are_constants_and_zero_where_the_objective_does_not_look() -> None:
    class Part(Product):
        def objective(self, leader: ZeroSum, y: Any, batch: Any) -> Tensor:
            return y["seen"].square().sum(1)

    follower, y = Part(), torch.randn(4, 3)
    problem = Oracle(follower, ZeroSum(nn.Identity(), follower), X)
    gradient = problem.gradient({"unseen": y, "seen": y})
    assert torch.equal(gradient["seen"], 2 * y)
    assert not gradient["unseen"].any()
    assert not any(part.requires_grad for part in gradient.values())


@pytest.mark.parametrize("second", [torch.tensor(4.0), torch.tensor(4j)])
@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_norm_is_over_all_tensors_of_a_dict(shared: bool, second: Tensor) -> None:
    class Pulled(FollowerProblem):
        """The gradient is (3, 4) or (3, −4i), of the whole y or of each sample's."""

        sense = "min"

        def init(self, batch: Any) -> dict[str, Tensor]:
            size = 1 if shared else 5
            return {"a": torch.zeros(size), "b": torch.zeros(size, dtype=second.dtype)}

        def objective(self, leader: ZeroSum, y: dict[str, Tensor], batch: Any) -> Tensor:
            value = 3 * y["a"] + (second * y["b"]).real
            return value.sum() if shared else value

    follower = Pulled()
    stats = (
        Iterative(Gradient(0.1), 1).solve(follower, ZeroSum(nn.Identity(), follower), None).stats
    )
    assert stats["gradient_norm"] == 5


@pytest.mark.parametrize("shape", [(), (5,)])
def test_the_gradient_norm_of_complex_numbers(shape: tuple[int, ...]) -> None:
    class Away(Product):
        """The gradient of |y − c|² is 2 (y − c)."""

        def init(self, batch: Any) -> Tensor:
            return torch.zeros(shape, dtype=torch.complex128)

        def objective(self, leader: ZeroSum, y: Tensor, batch: Any) -> Tensor:
            return (y - (3 + 4j)).abs().square()

    follower = Away()
    leader = ZeroSum(nn.Identity(), follower)
    solution = Iterative(Gradient(0.1), 1).solve(follower, leader, None)
    assert solution.stats["gradient_norm"].item() == pytest.approx(10)
    assert not solution.stats["gradient_norm"].is_complex()


@pytest.mark.parametrize(
    ("dtype", "words"), [(torch.float64, "out of luck"), (torch.float32, "not this dtype")]
)
def test_an_error_of_the_updates_own_is_left_alone(dtype: torch.dtype, words: str) -> None:
    """It is no difference in precision, or there is none."""

    class Fails(Update):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=dtype))

        def forward(self, y: Any, gradient: Any, context: Any, state: Any) -> Any:
            raise RuntimeError(words)

    with pytest.raises(RuntimeError, match=words):
        oracle(X).advance(Fails(), X, None, 1)


@pytest.mark.parametrize("differentiable", [False, True])
def test_the_oracle_of_another_problem(differentiable: bool) -> None:
    """Of the same leader and batch, and as differentiable: a solver may solve a problem within."""

    class Square(Product):
        def objective(self, leader: ZeroSum, y: Tensor, batch: Any) -> Tensor:
            return y.square().sum(1)

    own, other = Product(), Square()
    leader = ZeroSum(nn.Linear(3, 3), own)
    whole = Oracle(own, leader, X, differentiable=differentiable)
    inner = whole.of(other)
    assert (inner.follower, inner.leader, inner.batch) == (other, leader, X)
    inner.gradient(inner.init() + 1)
    assert (inner.evaluations, whole.evaluations) == (1, 0)
    y = torch.ones(4, 3, requires_grad=True)
    assert inner.gradient(y).requires_grad == differentiable


@pytest.mark.parametrize(
    ("update", "reads"),
    [
        (SignGradient(0.1), False),
        (Momentum(SignGradient(0.1), 1.0), False),
        (Optimizer(torch.optim.Adam, lr=0.1), False),
        (CNN(1, 0.1, inputs=("gradient",), width=4), False),
        (CNN(1, 0.1, inputs=("context",), width=4), True),
        (Momentum(CNN(1, 0.1, width=4), 1.0), True),
    ],
    ids=["sign", "momentum", "adam", "gradient", "context", "both"],
)
def test_the_context_is_computed_for_updates_that_read_it(update: Update, reads: bool) -> None:
    leader, follower, batch = image_game()
    context, seen = follower.context, []
    follower.context = lambda y, batch: (seen.append(y), context(y, batch))[1]
    Iterative(update, 3).solve(follower, leader, batch)
    assert len(seen) == (3 if reads else 0)


class Reversed(FollowerProblem):
    """min of (a − 1)² + 100 (b − 2)²; the projection gives the names in another order than init."""

    sense = "min"

    def init(self, batch):
        return {"a": torch.zeros(2), "b": torch.zeros(2)}

    def objective(self, leader, y, batch):
        return ((y["a"] - 1) ** 2 + 100 * (y["b"] - 2) ** 2).sum()

    def project(self, y, batch):
        return {name: y[name].clamp(-9, 9) for name in reversed(y)}


class Kept(Reversed):
    def project(self, y, batch):
        return {name: leaf.clamp(-9, 9) for name, leaf in y.items()}


@pytest.mark.parametrize(
    "update",
    [Optimizer(torch.optim.Adam, lr=0.1), CoordinateRNN(0.1), MLP(4)],
    ids=lambda update: type(update).__name__,
)
def test_a_state_goes_with_the_names_whatever_their_order(update: Update) -> None:
    """The optimizer's and the recurrent network's state go by position, as do an MLP's weights."""
    answers = [Iterative(update, 4).solve(f, Weights(1), None).value for f in (Kept(), Reversed())]
    torch.testing.assert_close(*answers, rtol=0, atol=0)


class Masked(FollowerProblem):
    """y is an attention mask, so that nothing that torch looks at requires a gradient."""

    sense = "max"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(2, 5)

    def objective(self, leader: ZeroSum, y: Tensor, batch: Tensor) -> Tensor:
        mask = y[:, None, None, :].expand(-1, 2, 5, 5).reshape(-1, 5, 5)
        return leader.model(batch, src_mask=mask).mean(1).square().sum(1)


def test_kernels_for_inference_have_no_gradient() -> None:
    follower = Masked()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    leader, batch = ZeroSum(layer, follower), torch.randn(2, 5, 8)
    with pytest.raises(BilevelError, match=r"leader_mode='train'.*set_fastpath_enabled"):
        Iterative(Gradient(0.1), 1).solve(follower, leader, batch)
    Iterative(Gradient(0.1), 1, leader_mode="train").solve(follower, leader, batch)


class Ragged(Masked):
    def init(self, batch: Tensor) -> Tensor:
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


class Thin(Masked):
    def init(self, batch: Tensor) -> Tensor:
        return torch.eye(2).to_sparse()


def test_a_start_that_is_sparse() -> None:
    follower = Thin()
    with pytest.raises(BilevelError, match=r"Thin\.init returned a sparse tensor.*to_dense"):
        Oracle(follower, ZeroSum(nn.Identity(), follower), torch.ones(2)).init()


def test_a_start_of_ragged_samples() -> None:
    follower = Ragged()
    with pytest.raises(BilevelError, match=r"nested tensor.*pad the samples"):
        Oracle(follower, ZeroSum(nn.Identity(), follower), torch.ones(2)).init()


class Wrapped(MutableMapping):
    """Its copies share their members."""

    def __init__(self, **members: Tensor) -> None:
        self.members = members

    def __getitem__(self, name: str) -> Tensor:
        return self.members[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.members[name] = value

    def __delitem__(self, name: str) -> None:
        del self.members[name]

    def __iter__(self):
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


def test_a_batch_is_left_as_it_is() -> None:
    batch = Wrapped(x=X, y=LABELS)
    some = select(batch, CHOSEN)
    assert some["x"].shape == (2, 3)
    assert batch["x"] is X
