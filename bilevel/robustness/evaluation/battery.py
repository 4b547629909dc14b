"""A battery of attacks on one classifier: each image is attacked until an attack breaks it.

An attack sees only the images that no earlier attack has broken, unless it is to be reported on its
own; within an attack, an image is dropped as soon as one restart or target breaks it. The default
battery takes 1.4 times the passes of its longest attack.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bilevel import distributed, frozen
from bilevel.arguments import count
from bilevel.experiment import checkpoint
from bilevel.experiment.progress import unreported
from bilevel.experiment.settings import settings_of
from bilevel.fingerprint import fingerprint
from bilevel.randomness import derived_seed, random_state_kept
from bilevel.robustness.attacks.attack import Attack
from bilevel.robustness.attacks.checks import check_threat
from bilevel.robustness.data.batches import Batch, batches
from bilevel.robustness.data.images import ImageSet, image_set
from bilevel.robustness.evaluation.accuracy import correct
from bilevel.robustness.evaluation.logits import right_answers
from bilevel.robustness.evaluation.problems import problem_of
from bilevel.robustness.evaluation.results import Outcome, survivors
from bilevel.robustness.threats.norms import Norm, ball_of


@dataclass
class _Progress:
    """The state of one attack."""

    attacked: Tensor
    broken: Tensor
    done: int = 0
    seconds: float = 0.0
    problem: str = ""
    finished: bool = False


@dataclass
class _State:
    """The state of the battery, as it is saved."""

    config: dict[str, object]
    right: Tensor
    works: list[_Progress] = field(default_factory=list)

    def survivors(self) -> Tensor:
        return survivors(self.right, (progress.broken for progress in self.works))


class Battery:
    """Runs attacks on a classifier; a stopped run resumes bit for bit.

    An attack that raises is reported with the error and without an accuracy of its own; the images
    that it had broken stay broken, and the next attack runs. Several processes attack one batch
    each at a time and return what a single process returns.

    Args:
        attacks: The attacks, cheap ones first.
        eps: ε of the ball that no attack may leave.
        norm: Its norm, ``"linf"``, ``"l2"`` or ``"l1"``.
        seed: Seed of the random numbers; the clean pass, each attack and each batch has a stream of
            its own.
        batch_size: Images a batch.
        path: The file that the state is saved to after each batch; None saves nothing.
        report: Called with the attack's name, the cost so far and the expected total cost, in
            forward passes of an image.

    Raises:
        BilevelError: If ``seed`` or ``batch_size`` is out of its range.

    Example:
        >>> from bilevel import pgm
        >>> from bilevel.robustness import Linf, SolverAttack
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> images = ImageSet(torch.zeros(6, 1, 2, 2).byte(), torch.arange(6) % 2, ("a", "b"))
        >>> battery = Battery([SolverAttack("PGM-2", Linf(1.0), pgm(0.5, 2))], eps=1.0)
        >>> right, outcomes = battery.run(model, images)
        >>> int(right.sum()), int(outcomes[0].broken.sum())
        (3, 3)
    """

    def __init__(
        self,
        attacks: Sequence[Attack],
        *,
        eps: float,
        norm: Norm = "linf",
        seed: int = 0,
        batch_size: int = 256,
        path: str | os.PathLike[str] | None = None,
        report: Callable[[str, float, float], None] = unreported,
    ) -> None:
        self.attacks = attacks
        self.ball = ball_of(norm)(eps)
        self.seed = count("seed", seed, least=0)
        self.batch_size = count("batch_size", batch_size)
        self.path = None if path is None else Path(path)
        self.report = report

    def run(
        self, model: nn.Module, images: ImageSet, *, resume: bool = False
    ) -> tuple[Tensor, tuple[Outcome, ...]]:
        """Runs every attack on a classifier.

        Args:
            model: The classifier; it computes in evaluation mode and is left as it was.
            images: The images.
            resume: Continue from the state at :attr:`path`, if there is one.

        Returns:
            Which clean images are classified correctly, ``(N,)`` bool on the CPU, and the outcomes.

        Raises:
            OtherRunError: If the state belongs to other attacks, another classifier or
                other images.
            BilevelError: If they are no image set.
        """
        device = image_set("images", images).images.device
        # Attacks draw from streams of the battery's own; the caller's goes on where it was.
        with frozen(model), random_state_kept(device):
            config = self._config(model, images)  # solvers that are to be trained are drawn for it
            if resume and self.path is not None and self.path.exists():
                state = self._load(self.path, config)
            else:
                torch.manual_seed(self.seed)  # of classifiers that draw random numbers
                state = _State(config, correct(model, images, batch_size=self.batch_size).cpu())
            for position, attack in enumerate(self.attacks):
                if position == len(state.works):
                    rows = state.right if attack.alone else state.survivors()
                    drawn = _sampled(rows, attack.sample, derived_seed(self.seed, position))
                    state.works.append(_Progress(drawn, torch.zeros_like(rows)))
                if not state.works[position].finished:
                    self._run(position, model, images, state)
        return state.right, tuple(
            Outcome(a.name, a.kind, p.attacked, p.broken, p.seconds, p.problem, a.role)
            for a, p in zip(self.attacks, state.works, strict=True)
        )

    def _run(self, position: int, model: nn.Module, images: ImageSet, state: _State) -> None:
        """Runs one attack batch by batch; an exception raised by it ends it, not the battery."""
        attack, progress = self.attacks[position], state.works[position]
        begun = time.perf_counter() - progress.seconds
        torch.manual_seed(derived_seed(self.seed, position))
        rounds = self._rounds(progress)
        if rounds:
            with _noting_problem(progress):
                distributed.gather_results(partial(attack.prepare, model))
        for rows in rounds:
            if progress.problem:
                break
            attacked = partial(self._broken_of_own, position, model, images, rows, progress.done)
            with _noting_problem(progress):
                progress.broken[torch.cat(rows)] = torch.cat(distributed.gather_results(attacked))
                progress.done += sum(map(len, rows))
            progress.seconds = time.perf_counter() - begun
            self._save_and_report(position, state)
        progress.seconds, progress.finished = time.perf_counter() - begun, True
        self._save_and_report(position, state)

    def _rounds(self, progress: _Progress) -> list[tuple[Tensor, ...]]:
        """The remaining images, a batch for each process at a time."""
        rows = progress.attacked.nonzero().squeeze(1)[progress.done :]
        step = distributed.world_size()
        queue = rows.split(self.batch_size) if len(rows) else ()
        return [queue[begin : begin + step] for begin in range(0, len(queue), step)]

    def _broken_of_own(
        self, position: int, model: nn.Module, images: ImageSet, rows: Sequence[Tensor], done: int
    ) -> Tensor:
        """Which images of this process's batch are broken; empty where it has no batch."""
        before, own = rows[: distributed.rank()], rows[distributed.rank() :][:1]
        if not own:
            return torch.zeros(0, dtype=torch.bool)
        torch.manual_seed(derived_seed(self.seed, position, done + sum(map(len, before))))
        return self._broken_by(self.attacks[position], model, images.subset(own[0]))

    def _broken_by(self, attack: Attack, model: nn.Module, images: ImageSet) -> Tensor:
        """Which images are broken by one of the attack's restarts or targets."""
        clean = next(batches(images, len(images)))
        broken = torch.zeros(len(images), dtype=torch.bool)
        for attempt in range(attack.tries):
            rows = (~broken).nonzero().squeeze(1).to(clean.y.device)
            if not len(rows):
                break
            batch = Batch(clean.x[rows], clean.y[rows])
            with frozen(model):  # whatever it leaves behind is not for the next one
                # Of copies: one that writes into its images would be checked against itself.
                adversarial = attack.perturb(model, Batch(*map(torch.clone, batch)), attempt)
            check_threat(batch.x, adversarial, self.ball)
            with torch.no_grad():
                broken[rows.cpu()] = ~right_answers(model(adversarial), batch.y).cpu()
        return broken

    def _save_and_report(self, position: int, state: _State) -> None:
        if self.path is not None:
            checkpoint.save(self.path, asdict(state))
        right, survivors = int(state.right.sum()), int(state.survivors().sum())
        spent = [a.passes * p.done for a, p in zip(self.attacks, state.works, strict=False)]
        ahead = [
            a.passes * (right if a.alone else min(survivors, a.sample or survivors))
            for a in self.attacks[position + 1 :]
        ]
        attack, progress = self.attacks[position], state.works[position]
        rest = 0 if progress.finished else int(progress.attacked.sum()) - progress.done
        self.report(attack.name, sum(spent), sum(spent) + attack.passes * rest + sum(ahead))

    def _load(self, path: Path, config: dict[str, object]) -> _State:
        saved: dict[str, Any] = checkpoint.load(path)
        checkpoint.check_settings(path, saved.get("config", {}), config)
        works = [_Progress(**work) for work in saved["works"]]
        for progress in works:
            if progress.problem:  # memory that is free now, a package that has been installed
                progress.problem, progress.finished = "", False
        return _State(config, saved["right"], works)

    def _config(self, model: nn.Module, images: ImageSet) -> dict[str, object]:
        return {
            "classifier": fingerprint(model),
            "settings of the classifier": settings_of(model),
            "images": fingerprint(images.images, images.labels),
            "attacks": [attack.settings for attack in self.attacks],
            "alone": [attack.name for attack in self.attacks if attack.alone],
            "samples": [attack.sample for attack in self.attacks],
            "norm": type(self.ball).__name__,
            "epsilon": self.ball.eps,
            "seed": self.seed,
            "batch size": self.batch_size,
        }


@contextmanager
def _noting_problem(progress: _Progress) -> Iterator[None]:
    """Within the block, an exception becomes the attack's problem."""
    try:
        yield
    except Exception as error:
        progress.problem = problem_of(error)


def _sampled(images: Tensor, size: int | None, seed: int) -> Tensor:
    """All of some images, ``(N,)`` bool, or as many of them as given, drawn at random."""
    rows = images.nonzero().squeeze(1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return torch.zeros_like(images).index_fill(0, rows[order[:size]], True)
