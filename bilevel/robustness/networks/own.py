"""Classifiers by name: those of the kit, and ``MODULE:FUNCTION`` for one's own."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bilevel.errors import BilevelError
from bilevel.randomness import random_state_kept
from bilevel.robustness.networks.models import build_model


def is_own(name: str) -> bool:
    """Whether a name is that of a function, ``MODULE:FUNCTION``.

    Args:
        name: The name of a classifier.

    Returns:
        False for other names, which may be those of the kit's classifiers.

    Example:
        >>> is_own("networks:vgg"), is_own("wrn-34-10")
        (True, False)
    """
    return bool(re.fullmatch(r"[\w.]+:\w+", name))


def build_own(name: str, **arguments: Any) -> nn.Module:
    """The classifier that a function returns.

    Args:
        name: ``MODULE:FUNCTION``, of a module in the current folder or of an installed one; without
            arguments it may be a network.
        arguments: What the function is called with.

    Returns:
        A network.

    Raises:
        BilevelError: If there is no such function, it takes other arguments, or it returns
            something else.

    Example:
        >>> build_own("torch.nn:Linear", in_features=3, out_features=2)
        Linear(in_features=3, out_features=2, bias=True)
    """
    _, make = _imported(name)
    if isinstance(make, nn.Module):
        if not arguments:
            return make
        raise BilevelError(
            f"{name} is a network: training builds one for each method; give a function that "
            "returns a new one, called with channels and classes"
        )
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        called = f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
        raise BilevelError(
            f"{called} cannot be called ({error}): training gives channels and classes, evaluation "
            "nothing, since the function then returns the trained network; name the folder of a "
            "saved classifier, or another function"
        ) from error
    network = make(**arguments)
    if not isinstance(network, nn.Module):
        raise BilevelError(
            f"{name} returned an object of type {type(network).__name__}: a classifier is a "
            "torch.nn.Module, from images in [0, 1] to logits; return one"
        )
    return network


def code_of(name: str) -> str:
    """A checksum of the module of a classifier of one's own, by which processes compare it.

    Args:
        name: The name of a classifier.

    Returns:
        Hexadecimal digits; nothing for the kit's classifiers.

    Raises:
        BilevelError: If there is no such function.
    """
    file = _imported(name)[0].__file__ if is_own(name) else None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""


def build_classifier(name: str, *, channels: int, classes: int) -> nn.Module:
    """The classifier of a name, freshly initialised.

    Args:
        name: See :func:`~bilevel.robustness.build_model`, or ``MODULE:FUNCTION`` of one's own,
            which is called as ``FUNCTION(channels=…, classes=…)``.
        channels: Channels of the images.
        classes: Number of classes.

    Returns:
        A new network, from images in [0, 1] to logits.

    Raises:
        BilevelError: If there is no such classifier, or each call of a function of one's own
            returns the same weights.

    Example:
        >>> build_classifier("small-cnn", channels=1, classes=10)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if not is_own(name):
        return build_model(name, channels=channels, classes=classes)
    network = build_own(name, channels=channels, classes=classes)
    with random_state_kept(torch.device("cpu")):
        _check_new(name, network, build_own(name, channels=channels, classes=classes))
    return network


def _check_new(name: str, network: nn.Module, other: nn.Module) -> None:
    """Checks that the networks of two calls share nothing that is trained."""
    trained = {one for one in network.parameters() if one.requires_grad}
    if not trained.isdisjoint(other.parameters()):
        raise BilevelError(
            f"{name} returned some of the weights of its last call: its networks would share them, "
            "and training one method would change the others; make or deepcopy all layers that "
            "are trained within the function"
        )


def _imported(name: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The module and the function of ``MODULE:FUNCTION``."""
    module, _, function = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
        return found, getattr(found, function)
    except (ImportError, AttributeError) as error:
        raise BilevelError(
            f"{name} cannot be imported ({type(error).__name__}: {error}): name MODULE:FUNCTION, "
            "of a module in this folder or of an installed one"
        ) from error
