"""Applications on a GPU, as a user runs them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("tyro", "rich", "sklearn", "matplotlib", "tensorboard", "safetensors"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def ended(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def run(*command: object) -> None:
    """Runs what is to succeed."""
    process = ended(*command)
    assert process.returncode == 0, process.stderr


def results(out: Path, device: torch.device) -> list[dict[str, Any]]:
    content = json.loads((out / "results.json").read_text())
    named = torch.cuda.get_device_name(device)
    assert content["environment"]["device"] == f"{device.type}: {named}"
    assert content["results"]
    return list(content["results"])


@pytest.mark.parametrize(
    ("methods", "options"),
    [
        ("two-step-l2l", "--compile on --precision bf16"),
        ("pgm two-step-l2l", "--cuda-graphs on"),
        ("plain pgm", "--cuda-graphs off --precision tf32 --fast"),
    ],
)
def test_a_classifier_is_trained_and_the_run_resumed(
    methods: str, options: str, device: torch.device, tmp_path: Path
) -> None:
    words = f"--smoke --device {device} --method {methods} {options}".split()
    command = "applications/adv_training.py", *words, "--out", tmp_path
    run(*command)
    first = results(tmp_path, device)
    assert [record["method"] for record in first] == methods.split()
    run(*command, "--resume")
    again = results(tmp_path, device)
    for name in ("clean", "pgm20", "pgm100", "own_attacker", "best_epoch"):
        assert [record[name] for record in again] == [record[name] for record in first]


@pytest.mark.parametrize("application", ["hyper_cleaning", "limit_cycles", "maml"])
def test_an_application_runs_there(application: str, device: torch.device, tmp_path: Path) -> None:
    run(f"applications/{application}.py", "--smoke", "--device", device, "--out", tmp_path)
    results(tmp_path, device)


def test_two_processes_that_share_one_gpu_are_refused(tmp_path: Path) -> None:
    if torch.cuda.device_count() > 1:
        pytest.skip("more than one GPU")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    command += ["applications/adv_training.py", "--smoke", "--device", "cuda"]
    process = ended(*command, "--out", tmp_path)
    assert process.returncode != 0
    told = "error: 2 processes share 1 GPU: each needs one of its own; give torchrun"
    assert process.stderr.count(told) == 1, process.stderr
