"""What is measured at which scale, in the order in which it is worth knowing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from bilevel.alias import ScheduleName
from bilevel.robustness.methods import Form, is_learned
from bilevel.robustness.networks.speed import Precision
from suite.steps import Size

Way = tuple[Precision, bool, bool]
"""A precision, whether networks are compiled, and whether a step is one CUDA graph."""

BOTH: tuple[ScheduleName, ...] = ("simultaneous", "alternating")


@dataclass(frozen=True)
class Steps:
    """Training steps of every method.

    Args:
        size: Of what.
        ways: In which they compute; the steps of all ways take turns.
        schedules: Under which they are taken.
        rounds: Of turns.
        minutes: That it may take on a GPU.
    """

    size: Size
    ways: tuple[Way, ...]
    schedules: tuple[ScheduleName, ...] = BOTH
    rounds: int = 5
    minutes: float = 0.0


@dataclass(frozen=True)
class Run:
    """A training run by the fast recipe, and the attacks on its classifier.

    Args:
        model: The classifier.
        method: How its follower is solved.
        epochs: None for the recipe's.
        seed: Added to that of the command line.
        attacker: The learned solver's network.
        warm_start: Whether each image's attack starts at its last answer.
        precision: In which it trains; None for the device's.
        fast: Whether its networks are compiled and its steps captured in a CUDA graph.
        minutes: That it may take on a GPU before it can be interrupted, and its attacks.
    """

    model: str
    method: str
    epochs: int | None = None
    seed: int = 0
    attacker: Form = "wide"
    warm_start: bool = False
    precision: Precision | None = None
    fast: bool = False
    minutes: float = 0.0

    @property
    def name(self) -> str:
        """What tells it from other runs."""
        attacker = self.attacker if is_learned(self.method) and self.attacker != "wide" else ""
        start = "warm start" if self.warm_start else ""
        seed = f"seed {self.seed}" if self.seed else ""
        return ", ".join(filter(None, (self.method, attacker, start, self.precision, seed)))


@dataclass(frozen=True)
class Scale:
    """All that is measured.

    Args:
        parts: In their order.
        images: Training, validation and test images; None for all.
    """

    parts: tuple[Steps | Run, ...]
    images: tuple[int | None, int | None, int | None]

    @property
    def compiled(self) -> bool:
        """Whether a training run is compiled."""
        return any(isinstance(part, Run) and part.fast for part in self.parts)


BF16, FLOAT32, TF32 = (Way((name, False, False)) for name in ("bf16", "float32", "tf32"))
BF16_COMPILED, FLOAT32_COMPILED, TF32_COMPILED = (
    Way((way[0], True, False)) for way in (BF16, FLOAT32, TF32)
)
BF16_GRAPH: Way = ("bf16", True, True)

WRN, RESNET = Size("wrn-34-10", 64, 128), Size("resnet18", None, 128)
ONE: tuple[ScheduleName, ...] = ("simultaneous",)

METHODS = ("two-step-l2l", "pgm", "two-step-pgm", "grad-l2l", "plain")
"""Those that classifiers are trained by: whether learning is worth it, two-step-pgm tells."""

_resnet = partial(Run, "resnet18", epochs=15, fast=True, minutes=2.0)


# The targets need no more than the first twelve; the rest completes the tables.
FULL = Scale(
    parts=(
        Steps(WRN, (FLOAT32,), rounds=3, minutes=3.0),
        Steps(WRN, (BF16_GRAPH, BF16_COMPILED), ONE, minutes=2.5),
        _resnet("two-step-l2l"),
        _resnet("pgm"),
        _resnet("two-step-l2l", attacker="two-layer"),
        _resnet("two-step-l2l", attacker="two-layer", warm_start=True),
        _resnet("two-step-pgm"),
        _resnet("two-step-pgm", warm_start=True),
        _resnet("grad-l2l"),
        _resnet("plain"),
        Steps(WRN, (TF32,), ONE, minutes=1.0),
        _resnet("two-step-l2l", precision="float32"),
        _resnet("two-step-l2l", seed=1),
        _resnet("pgm", seed=1),
        _resnet("two-step-l2l", attacker="two-layer", seed=1),
        _resnet("two-step-l2l", attacker="two-layer", warm_start=True, seed=1),
        _resnet("two-step-pgm", seed=1),
        _resnet("two-step-pgm", warm_start=True, seed=1),
        Steps(RESNET, (BF16_GRAPH, BF16_COMPILED), ONE, minutes=2.5),
        Steps(RESNET, (BF16,), minutes=1.0),
        Steps(WRN, (BF16,), minutes=1.0),
        Steps(RESNET, (FLOAT32,), rounds=3, minutes=1.5),
        Steps(WRN, (TF32_COMPILED,), ONE, minutes=5.0),
        Steps(WRN, (FLOAT32_COMPILED,), ONE, rounds=3, minutes=5.0),
        *(Run("wrn-34-10", method, 15, fast=True, minutes=4.0) for method in METHODS),
    ),
    images=(None, 500, 2000),
)
"""On a GPU."""

SMALL = Scale(
    parts=(
        *(Run("wrn-10-1", method, 10, attacker="two-layer") for method in METHODS),
        Run("wrn-10-1", "two-step-l2l", 10),
        Steps(Size("wrn-16-2", None, 32), (FLOAT32, BF16), rounds=6),
    ),
    images=(8000, 500, 1000),
)
"""On a processor, with images of one's own."""

DIGITS = replace(
    SMALL,
    parts=(*(Run("small-cnn", one, attacker="two-layer") for one in METHODS), SMALL.parts[-1]),
    images=(None, None, None),
)
"""On a processor, without."""

SMOKE = Scale(
    parts=(
        Steps(Size("wrn-10-1", None, 4), (FLOAT32,), rounds=1),
        *(
            Run("small-cnn", method, 1, attacker="two-layer")
            for method in ("two-step-l2l", "pgm", "plain")
        ),
    ),
    images=(128, 32, 16),
)
"""Everything once, in seconds."""

SMOKE_GPU = Scale(
    parts=(
        Steps(Size("wrn-10-1", None, 32), (BF16_COMPILED, BF16_GRAPH, TF32), ONE, rounds=1),
        Run("wrn-10-1", "two-step-l2l", 1, fast=True),
        Run("wrn-10-1", "two-step-l2l", 1, warm_start=True, fast=True),
        Run("wrn-10-1", "plain", 1),
    ),
    images=(512, 64, 64),
)
"""All that can fail on a GPU, before minutes are spent on it."""
