"""Points that an attack visits, where the classifier also returns something else than logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import pgm
from bilevel.robustness import Batch, Linf, SolverAttack


class Network(nn.Module):
    """Two classes by eight features."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor, features: bool = False, pair: bool = False) -> Any:
        hidden = self.body(x.flatten(1) - 0.5).tanh()
        if pair:
            return self.head(hidden), hidden
        return hidden if features else self.head(hidden)


class Away(Linf):
    """Moves the features away from those of the clean image."""

    def objective(self, leader: Any, y: Tensor, batch: Batch) -> Tensor:
        hidden = (self.features(leader.model, x) for x in (batch.x + y, batch.x))
        return torch.stack([*hidden]).diff(dim=0)[0].square().sum(1)

    def features(self, model: Network, x: Tensor) -> Tensor:
        return model(x, features=True)


class Positional(Away):
    def features(self, model: Network, x: Tensor) -> Tensor:
        return model(x, True)


class Named(Away):
    def features(self, model: Network, x: Tensor) -> Tensor:
        return model(x=x, features=True)


class Paired(Away):
    def features(self, model: Network, x: Tensor) -> Tensor:
        return model(x, pair=True)[1]


@pytest.mark.parametrize("threat", [Away, Positional, Named, Paired], ids=lambda t: t.__name__)
def test_features_are_no_logits(threat: type[Away]) -> None:
    torch.manual_seed(0)
    model, x = Network(), torch.rand(60, 1, 2, 2)
    batch = Batch(x, model(x).argmax(1))
    broken = []
    for keep in (False, True):
        torch.manual_seed(1)
        attack = SolverAttack("it", threat(0.3, start=0.3), pgm(0.1, 5), keep_broken=keep)
        broken.append((model(attack.perturb(model, batch, 0)).argmax(1) != batch.y).sum())
    assert broken[0] == broken[1] > 5


def test_what_is_taken_for_logits_is_classified_once_more() -> None:
    """A first call that returns features says that all images are broken at the start."""

    class Features(Network):
        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            hidden = self.body(x.flatten(1) - 0.5).tanh()
            return -self.head(hidden) if self.calls == 1 else self.head(hidden)

    torch.manual_seed(0)
    model, x = Features(), torch.rand(60, 1, 2, 2)
    model.calls = 1
    batch = Batch(x, model(x).argmax(1))
    model.calls = 0
    attack = SolverAttack("it", Linf(0.3), pgm(0.1, 5), keep_broken=True)
    found = attack.perturb(model, batch, 0)
    assert (model(found).argmax(1) != batch.y).sum() > 5
