"""Settings as text: equal for equal settings, different for different ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bilevel import Iterative, Parametric, pgm
from bilevel.distributed import SyncBatchNorm
from bilevel.experiment.settings import settings_of, shown
from bilevel.updates import CNN


def test_solvers_are_told_apart_by_their_settings_and_not_by_their_weights() -> None:
    def attacker(steps: int = 1, scale: float = 0.1) -> Iterative:
        return Iterative(CNN(1, scale, width=4), steps)

    assert settings_of(attacker()) == settings_of(attacker().eval())
    texts = {settings_of(solver) for solver in (attacker(), attacker(2), attacker(1, 0.2))}
    assert len({*texts, settings_of(pgm(0.1, 1)), settings_of(pgm(0.1, 2))}) == 5
    assert settings_of(Parametric(torch.zeros(1))) == settings_of(Parametric(torch.ones(1)))


def test_synchronising_statistics_is_no_other_setting() -> None:
    networks = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)) for _ in range(2)]
    SyncBatchNorm.convert_sync_batchnorm(networks[1])
    assert settings_of(networks[0]) == settings_of(networks[1])


def multiply(factor: float) -> Callable[[float], float]:
    return lambda number: factor * number


def test_large_tensors_and_closures_are_shown_by_what_they_hold() -> None:
    masks = [torch.ones(2000), torch.ones(2000)]
    masks[1][1000] = 0
    closures = [multiply(factor) for factor in (1, 1, 2)]
    assert shown(masks[0]) != shown(masks[1])
    assert shown(closures[0]) == shown(closures[1]) != shown(closures[2])
    assert shown([masks[0]]) != shown([masks[1]])
    assert shown({"a": masks[0]}) != shown({"a": masks[1]})
    assert shown(lambda x, k=1: k * x) != shown(lambda x, k=2: k * x)
    assert shown(lambda x, *, k=1: k * x) != shown(lambda x, *, k=2: k * x)


@dataclass(frozen=True)
class Weighted:
    weight: Tensor | float


def test_dataclasses_are_shown_by_what_they_hold() -> None:
    """Their own representation rounds tensors, and leaves out most of a large one."""
    many = torch.ones(2000)
    assert shown(Weighted(torch.tensor(1.0))) != shown(Weighted(torch.tensor(1.00001)))
    assert shown(Weighted(many)) != shown(Weighted(many.scatter(0, torch.tensor(1000), 0.0)))
    assert shown(Weighted(many)) == shown(Weighted(many.clone()))
    assert shown(Weighted(0.1)) == "Weighted(weight=0.1)"
    assert shown(Weighted) == "Weighted"


@dataclass
class Lazy:
    """Counts its calls, and knows its scale from the first one on."""

    power: float
    _calls: int = 0
    scale: float = field(init=False, repr=False)


def test_of_dataclasses_too_what_is_private_or_not_there_yet_is_left_out() -> None:
    assert shown(Lazy(2.0)) == shown(Lazy(2.0, 5)) == "Lazy(power=2.0)"


def test_addresses_are_left_out() -> None:
    assert shown(object()) == shown(object()) == "object()"


def test_settings_that_a_layer_tells_in_its_representation_count() -> None:
    """As that of nn.Linear, whose bias is no public attribute."""
    assert settings_of(nn.Linear(2, 2)) != settings_of(nn.Linear(2, 2, bias=False))


def test_settings_of_a_class_count_whatever_their_type() -> None:
    def of(**attributes: object) -> str:
        return settings_of(type("Attack", (), attributes)())

    first = {"norm": "linf", "sizes": (1, 2), "mask": torch.ones(2), "steps": 3}
    others = {"norm": "l2", "sizes": (1, 3), "mask": torch.zeros(2), "steps": 4}
    texts = {of(**first), *(of(**{**first, name: other}) for name, other in others.items())}
    assert len(texts) == 5


def test_functions_that_call_other_functions_are_told_apart() -> None:
    assert shown(lambda x: x.sin()) != shown(lambda x: x.cos())


def test_what_a_class_inherits_is_a_setting_of_it() -> None:
    class Base:
        limit = 0.1

    class Child(Base):
        pass

    assert settings_of(Child()) == "Child(limit=0.1)"


def test_sets_are_shown_alike_in_all_processes() -> None:
    """The order in which Python goes through one depends on the process."""
    code = "from bilevel.experiment.settings import shown; print(shown(lambda x: x in {'a', 'b'}))"
    told = [
        subprocess.run(
            [sys.executable, "-c", f"{code}; print(shown({{'a', 'b', 'c'}}))"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    ]
    assert told[0] == told[1]
    assert told[0].splitlines()[1] == "('a', 'b', 'c')"


def test_arrays_and_parts_of_functions_are_told_apart() -> None:
    first, second = np.arange(2000), np.arange(2000)
    second[1000] = 7
    assert shown(first) != shown(second)
    assert shown(np.zeros(2, np.int32)) != shown(np.zeros(2, np.float32))
    assert shown(np.array([object()])) == shown(np.array([object()]))  # no addresses
    assert shown(partial(lambda x: 2 * x)) != shown(partial(lambda x: 3 * x))
    assert len({shown(partial(max, 1)), shown(partial(max, 2)), shown(partial(max, key=2))}) == 3


def test_objects_are_told_apart_by_what_they_hold() -> None:
    class Focal:
        margin = 0.5

        def __init__(self, sign: float) -> None:
            self.sign = sign
            self._calls = 0

        def loss(self) -> None:
            self._calls += 1

    first, again, other = Focal(1.0), Focal(1.0), Focal(-1.0)
    first.loss()
    assert shown(first) == shown(again) == "Focal(margin=0.5, sign=1.0)"
    assert shown(first) != shown(other)
    assert shown(first.loss) == shown(again.loss) != shown(other.loss)
    assert shown(object()) == shown(object())
    first.names, again.names, other.names = ([f"image {n}" for n in range(k)] for k in (99, 99, 98))
    assert shown(first) == shown(again) != shown(other)
    assert len(shown(first)) < 50


def test_slots_are_told_apart() -> None:
    class Slotted:
        __slots__ = ("sign",)

        def __init__(self, sign: float) -> None:
            self.sign = sign

    assert shown(Slotted(1.0)) == settings_of(Slotted(1.0)) == "Slotted(sign=1.0)"


def test_functions_within_functions_are_told_apart() -> None:
    twice, thrice = (lambda xs: sum(2 * x for x in xs)), (lambda xs: sum(3 * x for x in xs))
    assert shown(twice) != shown(thrice)
    assert " at 0x" not in shown(twice)


def test_tensors_of_other_shapes_are_told_apart() -> None:
    assert shown(torch.ones(2, 3)) != shown(torch.ones(3, 2))


def test_what_refers_to_itself_is_shown() -> None:
    def factorial(n: int) -> int:
        return 1 if n == 0 else n * factorial(n - 1)

    table: dict[str, object] = {"size": 1}
    table["itself"] = table
    assert shown(table) == "(size: 1, itself: …)"
    assert shown(factorial).startswith("factorial ")


def test_a_named_tuple_has_settings() -> None:
    assert settings_of(namedtuple("Point", "eps")(0.1)) == "Point(eps=0.1)"


class Focal(nn.Module):
    """A loss, say, which refers to itself in a list."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power, self.parts = power, [self]


def test_a_network_within_is_shown_by_its_settings() -> None:
    assert shown(Focal(2.0)) == "(Focal(power=2.0, parts=(…)))"
    one, other = ({"loss": nn.Sequential(Focal(power))} for power in (1.0, 2.0))
    assert shown(one) != shown(other)
