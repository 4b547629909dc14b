"""What a policy does, as a moving picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium

from bilevel import BilevelError
from bilevel.experiment.files import atomic_write
from bilevel.imitation import Policy

LONGEST = 1000
"""Steps of an episode that are shown at most."""

EVERY = 2
"""Of so many frames one is kept."""


def check_film(env: str) -> None:
    """Draws an environment once.

    Args:
        env: Its name.

    Raises:
        BilevelError: If it cannot be drawn.
    """
    try:
        stage = _stage(env)
        stage.reset(seed=0)
        _draw(stage)
        stage.close()
    except Exception as error:  # of gymnasium, of what it draws with, of the environment
        told = str(error).partition("\n")[0]
        raise BilevelError(
            f'{env} cannot be drawn: {told}; pip install "bilevel[render]", or leave out --render'
        ) from error


def film(path: Path, env: str, policy: Policy) -> None:
    """Writes one episode as a GIF.

    Args:
        path: The file.
        env: The environment's name.
        policy: Who plays.
    """
    stage, actor = _stage(env), policy.actor()
    space: Any = stage.action_space
    shown, _ = stage.reset(seed=0)
    frames = []
    for step in range(LONGEST):
        if step % EVERY == 0:
            frames.append(_draw(stage))
        action = actor(shown[None].astype("float32"))[0]
        if hasattr(space, "low"):
            action = action.clip(space.low, space.high)
        shown, _, terminated, truncated, _ = stage.step(action)
        if terminated or truncated:
            break
    frames.append(_draw(stage))
    stage.close()
    with atomic_write(path) as part:
        frames[0].save(
            part, format="GIF", save_all=True, append_images=frames[1:], duration=40, loop=0
        )


def _stage(env: str) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(env, render_mode="rgb_array", disable_env_checker=True)


def _draw(stage: gymnasium.Env[Any, Any]) -> Any:
    """A frame in 256 colours."""
    from PIL import Image

    frame: Any = stage.render()
    return Image.fromarray(frame).convert("P")
