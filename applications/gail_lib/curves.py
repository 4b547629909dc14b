"""The methods by name, and their curves averaged over iterations."""

from __future__ import annotations

import torch
from torch import Tensor

from gail_lib.runs import Run

METHODS = ("gail", "l2l-gail", "bc", "constant")
TITLES = {"gail": "GAIL", "l2l-gail": "L2L-GAIL", "bc": "cloning", "constant": "constant D"}


def mean_return(run: Run, window: int) -> Tensor:
    """At each iteration the mean return of the episodes that ended in the last ``window`` ones.

    Episodes are weighted equally, not iterations: just after a reset only a few, short episodes
    end.
    """
    return moving_average(run.curves["return"], run.curves["episodes"], window)


def moving_average(curve: Tensor, weights: Tensor, window: int) -> Tensor:
    """The weighted mean of the last ``window`` values; NaN where all weights are 0."""
    windows = [slice(max(0, i - window + 1), i + 1) for i in range(len(curve))]
    weighted = (curve * weights).nan_to_num()  # a return is NaN, of weight 0, if no episode ended
    return torch.stack([weighted[part].sum() / weights[part].sum() for part in windows])
