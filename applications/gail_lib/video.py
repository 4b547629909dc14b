"""An episode of a policy as a GIF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium

from bilevel import BilevelError
from bilevel.experiment.files import atomic_write
from bilevel.imitation import Policy

MAX_STEPS = 1000
"""Steps of an episode that are recorded at most."""

FRAME_EVERY = 2
"""Steps per frame."""


def check_rendering(env: str) -> None:
    """Renders one frame of an environment.

    Args:
        env: Its name.

    Raises:
        BilevelError: If it cannot be rendered.
    """
    try:
        made = _make_env(env)
        made.reset(seed=0)
        _frame(made)
        made.close()
    except Exception as error:  # of gymnasium, of its rendering library, of the environment
        reason = str(error).partition("\n")[0] or "its render() gives no rgb_array"
        raise BilevelError(
            f"{env} cannot be rendered: {reason}; "
            'pip install "gymnasium[classic-control]", or leave out --render'
        ) from error


def record_gif(path: Path, env: str, policy: Policy) -> None:
    """Records one episode.

    Args:
        path: The GIF file.
        env: The environment's name.
        policy: The policy to play.
    """
    made, actor = _make_env(env), policy.actor()
    space: Any = made.action_space
    observation, _ = made.reset(seed=0)
    frames = []
    for step in range(MAX_STEPS):
        if step % FRAME_EVERY == 0:
            frames.append(_frame(made))
        action = actor(observation[None].astype("float32"))[0]
        if hasattr(space, "low"):
            action = action.clip(space.low, space.high)
        observation, _, terminated, truncated, _ = made.step(action)
        if terminated or truncated:
            break
    frames.append(_frame(made))
    made.close()
    with atomic_write(path) as part:
        frames[0].save(
            part, format="GIF", save_all=True, append_images=frames[1:], duration=40, loop=0
        )


def _make_env(name: str) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True)


def _frame(env: gymnasium.Env[Any, Any]) -> Any:
    """The current frame in 256 colours."""
    from PIL import Image

    frame: Any = env.render()
    if frame is None:
        raise NotImplementedError
    return Image.fromarray(frame).convert("P")
