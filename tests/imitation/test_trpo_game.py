"""`TRPO` in a game: it moves the leader, under hooks too, and a stopped game goes on."""

from __future__ import annotations

import copy
import io

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from bilevel import Bilevel, FollowerProblem, LeaderProblem, Parametric
from bilevel.adjoints import Detached
from bilevel.imitation import TRPO, CategoricalPolicy
from tests.policies import same_bits, snapshot


class Tilt(FollowerProblem):
    """max over y ∈ R² of E_π[y_a] − ½‖y‖²: a critic that y = π answers."""

    sense = "max"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros(2)

    def objective(self, leader: Imitator, y: Tensor, batch: Tensor) -> Tensor:
        return (leader.policy(batch).probs @ y).mean() - y.square().sum() / 2


class Imitator(LeaderProblem):
    """Goes where the critic is low; whatever the critic says about the first action, it is dear."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = CategoricalPolicy(3, 2, hidden=(8,))

    def loss(self, y: Tensor, batch: Tensor) -> Tensor:
        return (self.policy(batch).probs @ (y + torch.tensor([1.0, 0.0]))).mean()


def make_game() -> Bilevel:
    torch.manual_seed(0)
    leader, solver = Imitator(), Parametric(torch.zeros(2))
    return Bilevel(
        leader,
        Tilt(),
        solver,
        leader_opt=TRPO(leader.policy, max_kl=0.02),
        solver_opt=torch.optim.Adam(solver.parameters(), lr=0.05),
        adjoint=Detached(),
    )


def play(game: Bilevel, steps: range) -> None:
    for step in steps:
        states = torch.randn(32, 3, generator=torch.Generator().manual_seed(step))
        before = copy.deepcopy(game.leader.policy)
        game.step(states)
        with torch.no_grad():
            kl = kl_divergence(before(states), game.leader.policy(states)).mean().item()
        assert kl <= 0.02
        assert game.leader_opt.last.accepted == (kl > 0)


def test_it_moves_the_leader_of_a_game() -> None:
    game = make_game()
    play(game, range(20))
    probs = game.leader.policy(torch.randn(64, 3)).probs.mean(0)
    assert probs[1] > 0.8
    assert (game.solver.y - torch.tensor([0.0, 1.0])).abs().max() < 0.4  # the critic followed


def test_a_step_pre_hook_changes_the_gradient_of_the_step() -> None:
    plain, watched, clipped, turned = (make_game() for _ in range(4))
    start = snapshot(plain.leader.policy)

    def clip(optimizer: TRPO, *_: object) -> None:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1e-2)

    def turn(optimizer: TRPO, *_: object) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad.neg_()

    watched.leader_opt.register_step_pre_hook(lambda *_: None)
    clipped.leader_opt.register_step_pre_hook(clip)
    turned.leader_opt.register_step_pre_hook(turn)
    for game in (plain, watched, clipped, turned):
        play(game, range(3))
    moved = snapshot(plain.leader.policy)
    assert same_bits(watched.leader.policy, moved)
    # The bound sets the length of a step, not the gradient's norm.
    torch.testing.assert_close(snapshot(clipped.leader.policy), moved)
    assert same_bits(turned.leader.policy, start)  # uphill: no step is taken


def test_a_stopped_game_goes_on_bit_for_bit() -> None:
    whole = make_game()
    play(whole, range(6))
    stopped = make_game()
    play(stopped, range(3))
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = make_game()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    play(resumed, range(3, 6))
    assert same_bits(resumed.leader.policy, snapshot(whole.leader.policy))
    assert torch.equal(resumed.solver.y, whole.solver.y)
