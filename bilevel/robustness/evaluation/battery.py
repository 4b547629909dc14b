"""A battery of attacks on one classifier: each image is attacked until something breaks it.

An attack sees the images that those before it have left, unless its own figure is wanted; within an
attack, images leave the batch with the try that breaks them. So the battery costs little more than
its longest attack.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bilevel import BilevelError, distributed, frozen
from bilevel.experiment import checkpoint
from bilevel.robustness.attacks.attack import Attack
from bilevel.robustness.attacks.fingerprint import fingerprint
from bilevel.robustness.data.batches import Batch, batches
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.evaluation.accuracy import correct
from bilevel.robustness.evaluation.results import Outcome

_ROUNDING = 1e-6  # by which float32 may leave the ball


class OtherEvaluationError(BilevelError):
    """What is kept on disk belongs to other attacks, another classifier or other images."""


@dataclass
class _Work:
    """How far one attack has come."""

    attacked: Tensor
    broken: Tensor
    done: int = 0
    seconds: float = 0.0
    problem: str = ""
    finished: bool = False


@dataclass
class _State:
    """How far the battery has come; what a checkpoint holds."""

    config: dict[str, object]
    right: Tensor
    works: list[_Work] = field(default_factory=list)

    def survivors(self) -> Tensor:
        alive = self.right.clone()
        for work in self.works:
            alive &= ~work.broken
        return alive


class Battery:
    """Runs attacks, can be stopped and goes on bit for bit.

    An attack that fails ends with its reason and without a figure of its own, what it has broken
    stays broken, and the others go on. Many processes attack a batch each at a time, with the
    figures of one.

    Args:
        attacks: The attacks, cheap ones first.
        eps: ε of the L∞ ball that none may leave.
        seed: Of their random numbers; each attack and batch has its own.
        batch_size: Images a batch.
        path: Where the state is kept between batches; None keeps it nowhere.
        report: Called with the attack's name, the cost so far and the cost foreseen, in forward
            passes of an image.

    Example:
        >>> from bilevel import pgm
        >>> from bilevel.robustness import Linf, Solved
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> images = ImageSet(torch.zeros(6, 1, 2, 2).byte(), torch.arange(6) % 2, ("a", "b"))
        >>> battery = Battery([Solved("PGM-2", Linf(1.0), pgm(0.5, 2))], eps=1.0)
        >>> right, outcomes = battery.run(model, images)
        >>> int(right.sum()), int(outcomes[0].broken.sum())
        (3, 3)
    """

    def __init__(
        self,
        attacks: Sequence[Attack],
        *,
        eps: float,
        seed: int = 0,
        batch_size: int = 256,
        path: Path | None = None,
        report: Callable[[str, float, float], None] = lambda name, done, total: None,
    ) -> None:
        self.attacks = attacks
        self.eps = eps
        self.seed = seed
        self.batch_size = batch_size
        self.path = path
        self.report = report

    def run(
        self, model: nn.Module, images: ImageSet, *, resume: bool = False
    ) -> tuple[Tensor, tuple[Outcome, ...]]:
        """Attacks a classifier with everything.

        Args:
            model: The classifier; it computes in evaluation mode and is left as it was.
            images: The images.
            resume: Go on from the state at :attr:`path`, where there is one.

        Returns:
            The images that it gets right unattacked, ``(N,)`` bool on the CPU, and the outcomes.

        Raises:
            OtherEvaluationError: If the state belongs to other attacks, another classifier or
                other images.
        """
        config = self._config(model, images)
        with frozen(model):
            kept = resume and self.path is not None and self.path.exists()
            state = self._restore(config) if kept else self._begin(config, model, images)
            for position, attack in enumerate(self.attacks):
                if position == len(state.works):
                    alive = state.right if attack.alone else state.survivors()
                    state.works.append(_Work(alive.clone(), torch.zeros_like(alive)))
                if not state.works[position].finished:
                    self._run(position, model, images, state)
        return state.right, tuple(
            Outcome(a.name, a.kind, w.attacked, w.broken, w.seconds, w.problem, a.role)
            for a, w in zip(self.attacks, state.works, strict=True)
        )

    def _begin(self, config: dict[str, object], model: nn.Module, images: ImageSet) -> _State:
        return _State(config, correct(model, images, batch_size=self.batch_size).cpu())

    def _run(self, position: int, model: nn.Module, images: ImageSet, state: _State) -> None:
        """One attack, batch by batch; what goes wrong in it ends it, not the battery."""
        attack, work = self.attacks[position], state.works[position]
        begun = time.perf_counter() - work.seconds
        try:
            torch.manual_seed(_seed(self.seed, position))
            distributed.together(partial(attack.prepare, model))
            for rows in self._rounds(work):
                attacked = partial(self._attacked, position, model, images, rows, work.done)
                work.broken[torch.cat(rows)] = torch.cat(distributed.together(attacked))
                work.done += sum(map(len, rows))
                work.seconds = time.perf_counter() - begun
                self._note(position, state)
        except (KeyboardInterrupt, MemoryError, distributed.LostContactError):
            raise
        except Exception as error:  # whatever another package raises
            work.problem = _line(error)
        work.seconds, work.finished = time.perf_counter() - begun, True
        self._note(position, state)

    def _rounds(self, work: _Work) -> Iterator[tuple[Tensor, ...]]:
        """Which images come next: a batch for each process."""
        rows = work.attacked.nonzero().squeeze(1)[work.done :]
        step = distributed.world_size()
        queue = rows.split(self.batch_size) if len(rows) else ()
        return (queue[begin : begin + step] for begin in range(0, len(queue), step))

    def _attacked(
        self, position: int, model: nn.Module, images: ImageSet, rows: Sequence[Tensor], done: int
    ) -> Tensor:
        """Which images of this process's batch the attack breaks; none where it has no batch."""
        before, own = rows[: distributed.rank()], rows[distributed.rank() :][:1]
        if not own:
            return torch.zeros(0, dtype=torch.bool)
        torch.manual_seed(_seed(self.seed, position, done + sum(map(len, before))))
        return self._broken(self.attacks[position], model, images.subset(own[0]))

    def _broken(self, attack: Attack, model: nn.Module, images: ImageSet) -> Tensor:
        """Which of the images one of the attack's tries breaks."""
        clean = next(batches(images, len(images)))
        broken = torch.zeros(len(images), dtype=torch.bool)
        for attempt in range(attack.tries):
            rows = (~broken).nonzero().squeeze(1).to(clean.y.device)
            if not len(rows):
                break
            batch = Batch(clean.x[rows], clean.y[rows])
            adversarial = attack.perturb(model, batch, attempt)
            self._check_threat(batch.x, adversarial)
            broken[rows.cpu()] = _errs(model, Batch(adversarial, batch.y)).cpu()
        return broken

    def _check_threat(self, clean: Tensor, adversarial: Tensor) -> None:
        reach = (adversarial - clean).abs().max().item()
        outside = max(-adversarial.min().item(), adversarial.max().item() - 1)
        if not (reach <= self.eps + _ROUNDING and outside <= _ROUNDING):
            raise BilevelError(
                f"it left the threat model (‖δ‖∞ = {reach:.4g} where ε = {self.eps:g}, pixels "
                f"{max(outside, 0):.2g} outside [0, 1]): give it the ε of the evaluation"
            )

    def _note(self, position: int, state: _State) -> None:
        """Keeps the state and tells how far the battery is."""
        if self.path is not None:
            checkpoint.save(self.path, asdict(state))
        right, left = int(state.right.sum()), int(state.survivors().sum())
        spent = [a.passes * w.done for a, w in zip(self.attacks, state.works, strict=False)]
        ahead = [a.passes * (right if a.alone else left) for a in self.attacks[position + 1 :]]
        here, work = self.attacks[position], state.works[position]
        rest = 0 if work.finished else int(work.attacked.sum()) - work.done
        self.report(here.name, sum(spent), sum(spent) + here.passes * rest + sum(ahead))

    def _restore(self, config: dict[str, object]) -> _State:
        assert self.path is not None
        kept: dict[str, Any] = checkpoint.load(self.path)
        changed = [k for k, v in config.items() if kept.get("config", {}).get(k) != v]
        if changed:
            raise OtherEvaluationError(
                f"{self.path} is an evaluation with other {', '.join(changed)}: an evaluation is "
                "resumed as it was begun; give the same arguments, or another --out"
            )
        return _State(config, kept["right"], [_Work(**work) for work in kept["works"]])

    def _config(self, model: nn.Module, images: ImageSet) -> dict[str, object]:
        return {
            "classifier": fingerprint(model),
            "images": fingerprint(images.images, images.labels),
            "attacks": [attack.settings for attack in self.attacks],
            "epsilon": self.eps,
            "seed": self.seed,
            "batch size": self.batch_size,
        }


def _errs(model: nn.Module, batch: Batch) -> Tensor:
    """Where the answer is wrong; NaN is no right answer."""
    with torch.no_grad():
        logits: Tensor = model(batch.x)
    return (logits.argmax(1) != batch.y) | ~logits.isfinite().all(1)


def _seed(*parts: int) -> int:
    """One seed of several numbers, so that a resumed battery draws what it would have drawn."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, BilevelError) else f"{type(error).__name__}: {text[:200]}"
