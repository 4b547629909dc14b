"""The order of the tutorials in the gallery; a file that is not named here comes last."""

from __future__ import annotations

from pathlib import PurePath

ORDER = [
    "own_follower_problem.py",
    "robust_classifier.py",
    "find_wrong_labels.py",
    "learn_an_optimizer.py",
    "learn_a_dictionary.py",
    "games_that_circle.py",
    "imitate_an_expert.py",
]


def key(name: str) -> int:
    """Sorts the tutorials: the position of a file, given by its name or path."""
    file = PurePath(name).name
    return ORDER.index(file) if file in ORDER else len(ORDER)
