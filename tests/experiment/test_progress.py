"""What the progress bar of a training run says."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bilevel import BilevelError
from bilevel.experiment import Journal, ProgressBar


class Terminal(io.StringIO):
    """A screen."""

    def isatty(self) -> bool:
        return True


def test_where_there_is_no_terminal_each_epoch_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal("pgm", tmp_path) as journal:
        journal.begin(100, "the first steps")
        journal.report(10, {"loss": 2.5})
        journal.report(50, {"epoch": 0, "validation_clean": 0.25})
    assert capsys.readouterr().out == "pgm: epoch 1  loss 2.500  clean 0.250\n"


def test_a_bar_that_is_not_shown_is_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first versions of rich 13 would print an empty line."""
    monkeypatch.delattr("rich.progress.Progress.stop")
    with ProgressBar("pgm") as bar:
        assert not bar.visible


def test_a_bar_says_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the first metrics arrive, which may take minutes."""
    screen = Terminal()
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("rich._console", None)  # which remembers whether it was interactive
    with Journal("pgm", tmp_path) as journal:
        journal.begin(100, "the first steps")
        journal._bar._bar.refresh()
        assert screen.getvalue().rstrip().endswith("the first steps")
        journal.report(50, {"loss": 2.5})
        journal._bar._bar.refresh()
        assert screen.getvalue().rstrip().endswith("loss 2.500")
        assert journal._bar._bar.tasks[0].percentage == 50
    assert screen.getvalue().count("\x1b[?25h") == 1  # the cursor is back for what comes next


def test_a_bar_leaves_the_screen_to_what_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is shown, the cursor is hidden and a thread draws it again."""
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("rich._console", None)  # which remembers whether it was interactive
    with ProgressBar("pgm") as bar:
        assert bar.visible
        assert screen.getvalue().count("\x1b[?25l") == 1
    assert screen.getvalue().count("\x1b[?25h") == 1


def test_a_part_that_goes_on_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("pgm") as bar:
        for part, done in (("clean", 1), ("clean", 2), ("attacked", 3), ("attacked", 4)):
            bar.show(part, done, 4)
    assert capsys.readouterr().out == "pgm: clean\npgm: attacked\n"


def test_a_curve_has_a_point_for_each_report_at_its_step(tmp_path: Path) -> None:
    with Journal("pgm", tmp_path) as journal:
        journal.report(10, {"loss": 2.5})
        journal.report(20, {"loss": 1.5})
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in curves.Scalars("loss")] == [(10, 2.5), (20, 1.5)]


def test_one_process_of_a_job_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bilevel.distributed.is_main", lambda: False)
    with Journal("pgm", tmp_path) as journal:
        journal.report(50, {"epoch": 0, "validation_clean": 0.25})
    assert not [*tmp_path.iterdir()]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("first", "kept"), [(10, []), (20, [(10, 1.0)])])
def test_curves_of_an_earlier_run_end_where_this_one_begins(
    tmp_path: Path, first: int, kept: list[tuple[int, float]]
) -> None:
    """A run that is repeated replaces them, and one that is resumed continues them."""
    for value, steps in ((1.0, (10, 20, 30)), (2.0, (first, 40))):
        with Journal("pgm", tmp_path) as journal:
            for step in steps:
                journal.report(step, {"loss": value})
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(point.step, point.value) for point in curves.Scalars("loss")]
    assert points == [*kept, (first, 2.0), (40, 2.0)]


def test_a_disk_that_is_full_when_the_curves_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", full)
    told = r"cannot write .*tensorboard .*: free some space"
    with Journal("pgm", tmp_path) as journal, pytest.raises(BilevelError, match=told):
        journal.report(10, {"loss": 2.5})
