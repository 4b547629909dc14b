"""The network of one's own in the guide to adversarial training."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from bilevel.robustness import build_classifier, recompute_activations

PAGE = Path(__file__).parents[2] / "docs" / "adversarial_training.md"


def test_the_network_of_the_guide_is_built_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PAGE.read_text().partition("## Your own network\n")[2]
    (name,) = re.findall(r"`--model (\S+)`", section.partition("## ")[0])
    code = section.partition("```python\n")[2].partition("```")[0]
    (tmp_path / f"{name.partition(':')[0]}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = build_classifier(name, channels=3, classes=7)
    recompute_activations(model)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 7)
    sys.modules.pop(name.partition(":")[0])
