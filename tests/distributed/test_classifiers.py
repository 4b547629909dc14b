"""Processes attack the same classifiers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs import ROOT, launch

MODULE = """
import os

from torch import nn


def same():
    linear = nn.Linear(64, 10)
    nn.init.ones_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)


def other():
    network = same()
    nn.init.constant_(network[1].bias, float(os.environ["RANK"]))
    return network
"""


@pytest.mark.parametrize(("function", "machines"), [("same", 2), ("other", 1)])
def test_a_classifier_that_differs_between_processes_is_refused(
    tmp_path: Path, function: str, machines: int
) -> None:
    (tmp_path / "by_rank.py").write_text(MODULE)
    arguments = ["robust_eval.py", f"by_rank:{function}", "--dataset", "digits", "--smoke"]
    arguments += ["--epsilon", "0.1", "--attack", "fgsm", "--no-curves", "--out", "out"]
    script = f"""
import os, runpy, sys
os.chdir({str(tmp_path)!r})
sys.path.insert(0, {str(Path(ROOT) / "applications")!r})
sys.argv = {arguments!r}
runpy.run_path({str(Path(ROOT) / "applications" / "robust_eval.py")!r}, run_name="__main__")
"""
    ended = launch("-c", script, machines=machines)
    if function == "same":
        assert [one.status for one in ended] == [0, 0], ended
    else:
        assert all(one.status for one in ended)
        assert any("classifiers" in one.err for one in ended), ended
