"""A learned attacker trained against a finished classifier: an adaptive attack."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bilevel import Bilevel, Solver, ZeroSum, frozen
from bilevel.arguments import count
from bilevel.errors import BilevelError
from bilevel.experiment.settings import settings_of
from bilevel.fingerprint import fingerprint
from bilevel.problem import networks_of
from bilevel.robustness.attacks.attack import Attack, Kind, Role, attack
from bilevel.robustness.data.batches import Batch, shuffled_batches
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.threats.threat import Threat

_LR = 1e-3  # of Adam, as in the paper


class FreshAttack(Attack):
    """Trains a learned solver against the frozen classifier, then attacks with it.

    A classifier that was trained jointly with an attacker may resist that attacker only; a newly
    trained one of the same kind then breaks it.

    Args:
        name: The name in reports.
        follower: The threat model.
        make: Returns an untrained solver.
        images: Images to train on; not those that are attacked.
        steps: Training steps.
        batch_size: Images a step.
        kind: See :class:`Attack`.
        alone: Likewise.
        passes: Likewise.

    Raises:
        BilevelError: If there are no images, or ``steps`` or ``batch_size`` is not a positive
            integer; in the attack, if there is nothing to train.
    """

    def __init__(
        self,
        name: str,
        follower: Threat,
        make: Callable[[], Solver],
        images: ImageSet,
        *,
        steps: int = 300,
        batch_size: int = 128,
        kind: Kind = "iterative",
        alone: bool = False,
        passes: float = 1.0,
    ) -> None:
        super().__init__(name, kind=kind, alone=alone, passes=passes)
        if not len(images):
            raise BilevelError(
                "the image set is empty: a fresh attacker is trained on images; give one or more"
            )
        self.follower = follower
        self.make = make
        self.images = images
        self.steps = count("steps", steps)
        self.batch_size = count("batch_size", batch_size)
        self.solver: Solver | None = None

    @property
    def role(self) -> Role:
        """``"learned"``."""
        return "learned"

    @property
    def settings(self) -> tuple[str, ...]:
        """The name, the follower, the untrained solver, and how and on what it is trained."""
        training = f"{self.steps} steps of {self.batch_size}"
        images = self.images.images, self.images.labels
        given = fingerprint(*images, *networks_of(self.follower))
        return self.name, *map(settings_of, (self.follower, self.make())), training, given

    def prepare(self, model: nn.Module) -> None:
        """Trains the attacker in the game whose leader does not move."""
        self.solver = self.make().to(self.images.images.device).train()
        if not any(parameter.requires_grad for parameter in self.solver.parameters()):
            raise BilevelError(
                f"{self.name} has nothing to train: {type(self.solver).__name__} has no trainable "
                "parameters; attack with SolverAttack, or let make return a learned solver"
            )
        leader = ZeroSum(model, self.follower)
        optimizer = torch.optim.Adam(self.solver.parameters(), lr=_LR)
        held = nn.ModuleList([model, *networks_of(self.follower)])
        with frozen(held), torch.enable_grad():
            game = Bilevel(
                leader, self.follower, self.solver, leader_opt=None, solver_opt=optimizer
            )
            for batch in itertools.islice(self._training_batches(), self.steps):
                game.step(batch)

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """The trained attacker's answer."""
        assert self.solver is not None, "prepare comes first"
        return attack(model, self.follower, self.solver, batch).x

    def _training_batches(self) -> Iterator[Batch]:
        for epoch in itertools.count():
            yield from shuffled_batches(self.images, self.batch_size, seed=0, epoch=epoch)
