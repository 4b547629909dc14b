"""`MetricLog`: one reading for many steps, at once or later."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bilevel import BilevelError, MetricLog, NonFiniteError


def test_a_metric_that_some_steps_lack_is_averaged_over_the_others() -> None:
    log = MetricLog()
    log.add({"loss": torch.tensor(1.0)})
    log.add({"loss": torch.tensor(2.0), "norm": torch.tensor(5.0, dtype=torch.float64)})
    assert log.means() == {"loss": 1.5, "norm": 5.0}
    assert log.means() == {}


def test_numbers_are_averaged_beside_tensors() -> None:
    log = MetricLog()
    for epoch in (1, 2):
        log.add({"loss": torch.tensor(3.0), "lr": 0.1 / epoch, "epoch": epoch})
    assert log.means() == {"loss": 3.0, "lr": pytest.approx(0.075, rel=1e-12), "epoch": 1.5}


def test_a_dict_that_is_filled_again_is_another_step() -> None:
    log, metrics = MetricLog(), {}
    for loss in (1.0, 3.0):
        metrics["loss"] = torch.tensor(loss)
        log.add(metrics)
    assert log.means() == {"loss": 2.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool])
def test_a_mean_is_not_rounded_to_the_precision_of_its_numbers(dtype: torch.dtype) -> None:
    log = MetricLog()
    for value in (1, 1, 0):
        log.add({"hit": torch.tensor(value, dtype=dtype)})
    assert log.means() == {"hit": pytest.approx(2 / 3, rel=1e-12)}


def test_what_is_read_later_is_what_was_kept_then() -> None:
    log, loss = MetricLog(), torch.tensor(1.0)
    log.add({"loss": loss})
    later = log.means_later()
    log.add({"loss": loss.fill_(7.0)})
    assert later() == later() == {"loss": 1.0}
    assert log.means() == {"loss": 7.0}


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_step_of_a_metric_that_is_not_finite_counts_steps_without_it(shape: Any) -> None:
    log = MetricLog()
    log.add({})
    log.add({"norm": torch.full(shape, float("nan"))})
    later = log.means_later()
    with pytest.raises(NonFiniteError, match="norm is nan at step 2 of the last 2 read"):
        later()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for() -> None:
    log = MetricLog()
    for loss in torch.arange(3.0, device="cuda"):
        log.add({"loss": loss})
    torch.cuda.set_sync_debug_mode("error")
    try:
        later = log.means_later()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert later() == {"loss": 1.0}


@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(0)])
def test_a_metric_is_one_number(value: torch.Tensor) -> None:
    log = MetricLog()
    with pytest.raises(BilevelError, match=r"accuracy has shape \(\d,\): .* give its mean"):
        log.add({"accuracy": value})
    log.add({"accuracy": torch.ones(1, 1)})
    assert log.means() == {"accuracy": 1.0}
