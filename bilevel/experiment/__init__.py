"""What the applications share: command line, device, progress, checkpoints, results.

The core does not depend on it.
"""

from bilevel.experiment.machine import code, environment, pick_device
from bilevel.experiment.progress import Journal, ProgressBar
from bilevel.experiment.results import write_results

__all__ = ["Journal", "ProgressBar", "code", "environment", "pick_device", "write_results"]
