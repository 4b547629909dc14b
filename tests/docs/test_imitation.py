"""The code of docs/imitation.md runs as it is printed, on a policy as gail.py saves it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bilevel import imitation
from bilevel.experiment.weights import save_weights

PAGE = Path(__file__).parents[2] / "docs" / "imitation.md"
SAVED = "runs/gail/CartPole-v1/gail-0/policy.safetensors"


@pytest.mark.filterwarnings("ignore")
def test_a_saved_policy_is_used_with_and_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    states = torch.randn(50, 4)
    trained = imitation.Task.of(imitation.make_envs("CartPole-v1", 1)).policy(
        imitation.Standardize(states)
    )
    save_weights(tmp_path / SAVED, trained, {})
    names = {"imitation": imitation}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[-2:]:
        exec(code, names)
    torch.testing.assert_close(names["policy"](states).probs, trained(states).probs)
    network = torch.export.load(tmp_path / "policy.pt2").module()
    torch.testing.assert_close(network(states[:1]), trained.network(states[:1]))
    assert names["States"].width.fget is not imitation.Discriminator.width.fget
