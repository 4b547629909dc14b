"""The results of a run, as a file that any program reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel import BilevelError
from bilevel.experiment import write_results
from bilevel.experiment.results import read_results


def test_what_json_lacks_is_written_as_text(tmp_path: Path) -> None:
    config = {"out": Path("runs"), "limit": None, "sizes": (1, 2)}
    path = write_results(tmp_path / "new", config, {"torch": "2"}, ({"loss": 0.5},))
    assert json.loads(path.read_text()) == {
        "config": {"out": "runs", "limit": None, "sizes": [1, 2]},
        "environment": {"torch": "2"},
        "results": [{"loss": 0.5}],
    }


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    path = write_results(tmp_path, {}, {}, [{"loss": np.float32(0.5), "right": np.int64(3)}])
    assert json.loads(path.read_text())["results"] == [{"loss": 0.5, "right": 3}]


def test_what_other_programs_cannot_read_is_null(tmp_path: Path) -> None:
    """JSON has no NaN and no infinity."""
    record = {"nan": math.nan, "least": -math.inf, "norm": torch.tensor(math.inf), "list": [1.0]}
    path = write_results(tmp_path, {"limit": math.inf}, {}, [record])
    content = json.loads(path.read_text(), parse_constant=lambda name: name)
    assert content["config"] == {"limit": None}
    assert content["results"] == [{"nan": None, "least": None, "norm": None, "list": [1.0]}]


def test_a_file_that_was_copied_in_part_is_told(tmp_path: Path) -> None:
    path = write_results(tmp_path, {}, {}, [{"accuracy": 0.5}])
    assert read_results(tmp_path)["results"] == [{"accuracy": 0.5}]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BilevelError, match=r"results\.json is no readable .*: .*delete it"):
        read_results(tmp_path)
