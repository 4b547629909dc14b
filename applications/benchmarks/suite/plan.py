"""What is measured at which scale, in the order in which it is worth knowing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bilevel.alias import ScheduleName
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
        precision: In which it trains; None for the device's.
        compiled: Whether its networks are.
        minutes: That it may take on a GPU before it can be interrupted, and its attacks.
    """

    model: str
    method: str
    epochs: int | None = None
    precision: Precision | None = None
    compiled: bool = False
    minutes: float = 0.0


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
        return any(isinstance(part, Run) and part.compiled for part in self.parts)


BF16, FLOAT32, TF32 = (Way((name, False, False)) for name in ("bf16", "float32", "tf32"))
BF16_COMPILED, FLOAT32_COMPILED, TF32_COMPILED = (
    Way((way[0], True, False)) for way in (BF16, FLOAT32, TF32)
)
BF16_GRAPH: Way = ("bf16", True, True)

WRN, RESNET = Size("wrn-34-10", 64, 128), Size("resnet18", None, 128)
ONE: tuple[ScheduleName, ...] = ("simultaneous",)


def _resnet(method: str, precision: Precision | None = None) -> Run:
    return Run("resnet18", method, 20, precision, compiled=True, minutes=2.0)


# The first nine serve the targets, and are meant for half an hour; the rest completes the tables.
FULL = Scale(
    parts=(
        Steps(WRN, (BF16_COMPILED,), ONE, minutes=5.0),
        Steps(WRN, (FLOAT32,), minutes=3.5),
        _resnet("two-step-l2l"),
        _resnet("pgm"),
        Steps(WRN, (TF32,), ONE, minutes=2.0),
        Steps(RESNET, (BF16_COMPILED,), ONE, minutes=2.5),
        _resnet("grad-l2l"),
        _resnet("plain"),
        _resnet("two-step-l2l", "float32"),
        Steps(WRN, (BF16_GRAPH,), ONE, minutes=4.0),
        Steps(RESNET, (FLOAT32,), minutes=1.5),
        Steps(RESNET, (BF16_GRAPH,), ONE, minutes=2.5),
        Steps(WRN, (BF16,), minutes=2.5),
        Steps(RESNET, (BF16,), minutes=1.5),
        Steps(WRN, (TF32_COMPILED,), ONE, minutes=5.0),
        Steps(WRN, (FLOAT32_COMPILED,), ONE, minutes=5.0),
        *(
            Run("wrn-34-10", method, 15, compiled=True, minutes=4.0)
            for method in ("two-step-l2l", "pgm", "grad-l2l", "plain")
        ),
    ),
    images=(None, 500, 2000),
)
"""On a GPU."""

METHODS = ("two-step-l2l", "pgm", "grad-l2l", "plain")

SMALL = Scale(
    parts=(
        Steps(Size("wrn-16-2", None, 32), (FLOAT32, BF16), rounds=6),
        *(Run("wrn-10-1", method, 10) for method in METHODS),
    ),
    images=(8000, 500, 1000),
)
"""On a processor, with images of one's own."""

DIGITS = replace(
    SMALL,
    parts=(SMALL.parts[0], *(Run("small-cnn", method) for method in METHODS)),
    images=(None, None, None),
)
"""On a processor, without."""

SMOKE = Scale(
    parts=(
        Steps(Size("wrn-10-1", None, 4), (BF16,), rounds=1),
        *(Run("small-cnn", method, 1) for method in METHODS),
    ),
    images=(128, 32, 16),
)
"""Everything once, in seconds."""

SMOKE_GPU = Scale(
    parts=(
        Steps(Size("wrn-10-1", None, 32), (BF16_COMPILED, BF16_GRAPH, TF32), ONE, rounds=1),
        Run("wrn-10-1", "two-step-l2l", 1, compiled=True),
        Run("wrn-10-1", "plain", 1),
    ),
    images=(512, 64, 64),
)
"""All that can fail on a GPU, before minutes are spent on it."""
