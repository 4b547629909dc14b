"""A classifier of one's own, named by the function that makes it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from torch import nn

from bilevel import BilevelError
from bilevel.robustness import About, ImageSet, Trained

_FUNCTION = re.compile(r"[\w.]+:\w+")


def is_function(path: str) -> bool:
    """Whether MODULE:FUNCTION is named, not a folder."""
    return bool(_FUNCTION.fullmatch(path)) and not Path(path).exists()


def make_own(path: str, name: str | None, dataset: str, images: ImageSet) -> Trained:
    """The classifier that MODULE:FUNCTION returns, of which no more is known than its images."""
    module, _, function = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BilevelError(
            f"{path} cannot be imported ({type(error).__name__}: {error}): name MODULE:FUNCTION, "
            "of a module in this folder or of an installed one"
        ) from error
    model = make()
    if not isinstance(model, nn.Module):
        raise BilevelError(
            f"{path} returned an object of type {type(model).__name__}: the function takes no "
            "arguments and returns a torch.nn.Module, from images in [0, 1] to logits"
        )
    channels, classes = images.images.shape[1], images.classes
    about = About("plain", path, channels, len(classes), dataset, epsilon=0.0, class_names=classes)
    return Trained(name or function, about, model)
