"""docs/distributed.md: its example trains in two processes what it trains in one."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from tests import jobs

PAGE = (jobs.ROOT / "docs" / "distributed.md").read_text()
(SECTION,) = re.findall(r"^## Your own code\n(.*?)^## ", PAGE, re.M | re.S)
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", SECTION, re.S)


def test_two_processes_train_the_example_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("example.py").write_text(EXAMPLE)
    with pytest.raises(SystemExit) as end:
        runpy.run_path("example.py")
    assert not end.value.code
    alone = torch.load("model.pt")
    Path("model.pt").unlink()
    run = f"import os, runpy; os.chdir({str(tmp_path)!r}); runpy.run_path('example.py')"
    ended = jobs.launch("-c", run)
    assert [end.status for end in ended] == [0, 0], ended
    torch.testing.assert_close(torch.load("model.pt"), alone, rtol=0, atol=1e-5)
