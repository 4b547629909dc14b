"""What is measured at which scale, in the order in which it is worth knowing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from bilevel.alias import ScheduleName
from bilevel.robustness.methods import Form, is_learned
from bilevel.robustness.networks.precision import Precision
from suite.steps import Size

BOTH: tuple[ScheduleName, ...] = ("simultaneous", "alternating")


class Way(NamedTuple):
    """How a step computes.

    Attributes:
        precision: The precision of its networks.
        compiled: Whether they are compiled.
        graphs: Whether the step is captured as one CUDA graph.
    """

    precision: Precision
    compiled: bool = False
    graphs: bool = False


@dataclass(frozen=True)
class Timing:
    """Training steps of every method, timed.

    Args:
        size: Networks and batch.
        ways: How they compute; the steps of all ways take turns.
        schedules: The schedules of the steps.
        rounds: Number of turns of each step.
        minutes: How long it may take on a GPU.
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
        method: The method that solves its follower.
        epochs: None for the recipe's.
        seed: Added to that of the command line.
        attacker: The learned solver's network.
        warm_start: Whether each image's attack starts at its last answer.
        precision: Of training; None for the device's default.
        fast: Whether its networks are compiled and its steps captured in a CUDA graph.
        minutes: How long it may take on a GPU until it can be interrupted, as may its attacks.
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
        """The method, and what tells the run from others of the same method."""
        attacker = self.attacker if is_learned(self.method) and self.attacker != "wide" else ""
        start = "warm start" if self.warm_start else ""
        seed = f"seed {self.seed}" if self.seed else ""
        return ", ".join(filter(None, (self.method, attacker, start, self.precision, seed)))


@dataclass(frozen=True)
class Scale:
    """All that is measured.

    Args:
        parts: What is measured, in this order.
        images: Training, validation and test images; None for all.
    """

    parts: tuple[Timing | Run, ...]
    images: tuple[int | None, int | None, int | None]

    @property
    def compiled(self) -> bool:
        """Whether a training run is compiled."""
        return any(isinstance(part, Run) and part.fast for part in self.parts)


BF16, FLOAT32, TF32 = Way("bf16"), Way("float32"), Way("tf32")
BF16_COMPILED, FLOAT32_COMPILED, TF32_COMPILED = (
    one._replace(compiled=True) for one in (BF16, FLOAT32, TF32)
)
BF16_GRAPH = Way("bf16", compiled=True, graphs=True)

WRN, RESNET = Size("wrn-34-10", 64, 128), Size("resnet18", None, 128)
ONE: tuple[ScheduleName, ...] = ("simultaneous",)

TRAINED = ("two-step-l2l", "pgm", "two-step-pgm", "grad-l2l", "plain")
"""The methods that classifiers are trained by; two-step-pgm tells whether learning is worth it."""

_resnet = partial(Run, "resnet18", epochs=15, fast=True, minutes=2.0)


# The targets need no more than the first twelve; the rest completes the tables.
FULL = Scale(
    parts=(
        Timing(WRN, (FLOAT32,), rounds=3, minutes=3.0),
        Timing(WRN, (BF16_GRAPH, BF16_COMPILED), ONE, minutes=2.5),
        _resnet("two-step-l2l"),
        _resnet("pgm"),
        _resnet("two-step-l2l", attacker="two-layer"),
        _resnet("two-step-l2l", attacker="two-layer", warm_start=True),
        _resnet("two-step-pgm"),
        _resnet("two-step-pgm", warm_start=True),
        _resnet("grad-l2l"),
        _resnet("plain"),
        Timing(WRN, (TF32,), ONE, minutes=1.0),
        _resnet("two-step-l2l", precision="float32"),
        _resnet("two-step-l2l", seed=1),
        _resnet("pgm", seed=1),
        _resnet("two-step-l2l", attacker="two-layer", seed=1),
        _resnet("two-step-l2l", attacker="two-layer", warm_start=True, seed=1),
        _resnet("two-step-pgm", seed=1),
        _resnet("two-step-pgm", warm_start=True, seed=1),
        Timing(RESNET, (BF16_GRAPH, BF16_COMPILED), ONE, minutes=2.5),
        Timing(RESNET, (BF16,), minutes=1.0),
        Timing(WRN, (BF16,), minutes=1.0),
        Timing(RESNET, (FLOAT32,), rounds=3, minutes=1.5),
        Timing(WRN, (TF32_COMPILED,), ONE, minutes=5.0),
        Timing(WRN, (FLOAT32_COMPILED,), ONE, rounds=3, minutes=5.0),
        *(Run("wrn-34-10", method, 15, fast=True, minutes=4.0) for method in TRAINED),
    ),
    images=(None, 500, 2000),
)
"""On a GPU."""

SMALL = Scale(
    parts=(
        *(Run("wrn-10-1", method, 10, attacker="two-layer") for method in TRAINED),
        Run("wrn-10-1", "two-step-l2l", 10),
        Timing(Size("wrn-16-2", None, 32), (FLOAT32, BF16), rounds=6),
    ),
    images=(8000, 500, 1000),
)
"""On a processor, with images of one's own."""

DIGITS = replace(
    SMALL,
    parts=(*(Run("small-cnn", one, attacker="two-layer") for one in TRAINED), SMALL.parts[-1]),
    images=(None, None, None),
)
"""On a processor, without."""

SMOKE = Scale(
    parts=(
        Timing(Size("wrn-10-1", None, 4), (FLOAT32,), rounds=1),
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
        Timing(Size("wrn-10-1", None, 32), (BF16_COMPILED, BF16_GRAPH, TF32), ONE, rounds=1),
        Run("wrn-10-1", "two-step-l2l", 1, fast=True),
        Run("wrn-10-1", "two-step-l2l", 1, warm_start=True, fast=True),
        Run("wrn-10-1", "plain", 1),
    ),
    images=(512, 64, 64),
)
"""All that can fail on a GPU, before minutes are spent on it."""
