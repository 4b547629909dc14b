"""What every application shares: command line, device, progress, checkpoints, results.

It serves the scripts in ``applications/`` and knows no problem; the core does without it.
"""

from bilevel.experiment.machine import code, environment, pick_device
from bilevel.experiment.progress import Journal, ProgressBar
from bilevel.experiment.results import write_results

__all__ = ["Journal", "ProgressBar", "code", "environment", "pick_device", "write_results"]
