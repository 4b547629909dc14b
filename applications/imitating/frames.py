"""What a policy does, as a moving picture."""

from __future__ import annotations

from pathlib import Path

import torch

from bilevel import BilevelError
from bilevel.files import replacing
from bilevel.imitation import Policy


def film(path: Path, env: str, policy: Policy, *, every: int = 2) -> None:
    """Writes one episode as a GIF.

    Args:
        path: The file.
        env: The environment's name.
        policy: Who plays.
        every: Of how many frames one is kept.

    Raises:
        BilevelError: If the environment cannot be drawn.
    """
    import gymnasium
    from gymnasium.error import DependencyNotInstalled
    from PIL import Image

    try:
        stage = gymnasium.make(env, render_mode="rgb_array")
        shown, _ = stage.reset(seed=0)
        frames, over = [stage.render()], False
        while not over:
            action = policy.player()(torch.as_tensor(shown[None]).numpy())[0]
            shown, _, terminated, truncated, _ = stage.step(action)
            over = terminated or truncated
            frames.append(stage.render())
        stage.close()
    except DependencyNotInstalled as error:
        raise BilevelError(
            f'{env} cannot be drawn: {error}; pip install "bilevel[render]", or leave out --render'
        ) from error
    pictures = [Image.fromarray(frame).convert("P") for frame in frames[::every]]
    with replacing(path) as part:
        pictures[0].save(
            part, format="GIF", save_all=True, append_images=pictures[1:], duration=40, loop=0
        )
