"""An evaluation as flat records: the figures of each attack."""

from __future__ import annotations

import torch

from bilevel.robustness.evaluation.records import records
from bilevel.robustness.evaluation.results import Evaluation, Outcome


def test_an_attack_has_the_figures_of_its_place_in_the_battery() -> None:
    """Of ten images eight are right; the second attack sees them all, the third what is left."""
    number = torch.arange(10)
    right, left = number < 8, (number >= 3) & (number < 8)
    outcomes = (
        Outcome("first", "one-step", right, number < 2, 1.0),
        Outcome("second", "iterative", right, (number >= 1) & (number < 3), 2.0),
        Outcome("third", "black-box", left, number == 5, 3.0),
    )
    _, *attacks = records(Evaluation("it", 0.2, None, right, outcomes))
    figures = ("attack", "attacked", "broken", "alone", "worst_case_so_far", "seconds")
    assert [tuple(attack[figure] for figure in figures) for attack in attacks] == [
        ("first", 8, 2, 0.6, 0.6, 1.0),
        ("second", 8, 2, 0.6, 0.5, 2.0),
        ("third", 5, 1, None, 0.4, 3.0),
    ]
