"""Reads the state of a game's parts, and loads it as a whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from bilevel.errors import BilevelError
from bilevel.problem import named_networks

if TYPE_CHECKING:
    from bilevel.game import Bilevel

MOVED = ("solver", "schedule", "adjoint")
"""Parts whose state holds tensors that are not parameters: loading must move them to the device."""

NETWORK = "follower"
"""What the name of a network of the follower begins with."""


def read(game: Bilevel) -> dict[str, Any]:
    """The state of each part.

    Args:
        game: The game.

    Returns:
        Tensors and plain values, by the part's name.
    """
    return {name: part.state_dict() for name, part in _parts(game).items()}


def load(game: Bilevel, state: Mapping[str, Any]) -> None:
    """Loads each part's state; if one does not fit, raises and leaves all as they were.

    Args:
        game: The game.
        state: What :func:`read` returned for a game of such parts, and the number of steps.

    Raises:
        BilevelError: If it is the state of another game.
    """
    parts = _parts(game)
    device = next((p.device for p in game.leader.parameters()), torch.device("cpu"))
    _check_names([*parts, "steps"], state)
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            check_fits(name, part.state_dict(), state[name])
    # An optimizer of torch puts another state in the place of its own.
    before = {
        name: part.state_dict() if isinstance(part, Optimizer) else copy.deepcopy(part.state_dict())
        for name, part in parts.items()
    }
    settings = _settings(parts)
    try:
        _load(parts, state, device)
        _check_settings(parts, settings)
    except Exception as error:
        _load(parts, before, device)
        if isinstance(error, BilevelError):  # which says itself what does not fit
            raise
        raise BilevelError(
            f"the state does not fit ({type(error).__name__}: {error}): it was written by a game "
            "with another schedule, adjoint or optimizer; build the game as it was when the state "
            "was saved"
        ) from error


def _parts(game: Bilevel) -> dict[str, Any]:
    """What has a state, by name; of the follower its networks that are no player's."""
    players = {*game.leader.modules(), *game.solver.modules()}
    networks = named_networks(game.follower).items()
    parts = {
        "leader": game.leader,
        "solver": game.solver,
        **{f"{NETWORK}.{n}".removesuffix("."): net for n, net in networks if net not in players},
        "leader_opt": game.leader_opt,
        "solver_opt": game.solver_opt,
        "schedule": game.schedule,
        "adjoint": game.adjoint,
    }
    return {name: part for name, part in parts.items() if part is not None}


def _check_names(own: Collection[str], state: Collection[str]) -> None:
    """Refuses a state that lacks a part, or has a network that the follower does not hold."""
    for name in own:
        if name not in state:
            raise BilevelError(
                f"the state has no {name!r}: it was written by a game of other parts; build "
                "the game as it was when the state was saved"
            )
    for name in state:
        if name.startswith(NETWORK) and name not in own:
            raise BilevelError(
                f"the state has a network {name!r}, which this game's follower does not hold: it "
                "would be left out; build the game as it was when the state was saved"
            )


def _load(parts: Mapping[str, Any], state: Mapping[str, Any], device: torch.device) -> None:
    for name, part in parts.items():
        saved = state[name]
        if name != "leader":  # others write into what they load
            saved = copy.deepcopy(saved)
        if name in MOVED:
            # In place: what torch keeps beside the tensors stays there.
            saved.update(tree_map_only(Tensor, lambda tensor: tensor.to(device), saved))
        if name in ("schedule", "adjoint") and saved.keys() != (own := part.state_dict()).keys():
            raise KeyError(f"the {name} has state {[*own]}, not {[*saved]}")
        part.load_state_dict(saved)


def _settings(parts: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The optimizers' settings by name, of which an optimizer of another kind lacks some."""
    return {
        (part, setting)
        for part, optimizer in parts.items()
        for group in getattr(optimizer, "param_groups", ())
        for setting in group
        if setting != "initial_lr"  # of a scheduler, which may come later
    }


def _check_settings(parts: Mapping[str, Any], needed: set[tuple[str, str]]) -> None:
    if lacking := sorted(needed - _settings(parts)):
        part, setting = lacking[0]
        raise KeyError(f"the {part} of the state has no {setting}")


def check_fits(name: str, own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Checks that a saved state dict belongs to this architecture.

    Args:
        name: The module's name, for the message.
        own: The module's state dict.
        saved: The saved one.

    Raises:
        BilevelError: If a tensor is missing, unexpected or of another shape.
    """
    for key in {**own, **saved}:
        there, here = (_shape(state, key) for state in (saved, own))
        if there != here and not key.endswith("_extra_state"):
            raise BilevelError(
                f"the saved {name} is of another architecture: {key} is {there} there and {here} "
                "here; build the network as it was when it was saved"
            )


def _shape(state: dict[str, Any], key: str) -> str:
    value = state.get(key)
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"
