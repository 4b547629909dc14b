"""Command lines by tyro: help and errors as the applications show them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from bilevel import BilevelError
from bilevel.experiment import commandline


@dataclass
class Args:
    name: str = "a"
    count: int = 3
    out: Path = Path("runs")
    data_dir: Path = Path("data")
    keep_all: bool = True
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = 5
    words: tuple[str, ...] = ("a", "b%")


@dataclass
class Explained:
    width: int = 80
    """How wide a page is: a docstring that stands on more than one
    line of the source, and that the help breaks where the screen asks for it."""


Parse = Callable[..., Any]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """What ``main`` is given; what else there is to say is in the exit."""

    def parse(line: str, arguments: type[Any] = Args, **reader: Any) -> Any:
        monkeypatch.setattr(sys, "argv", ["app.py", *line.split()])
        given: list[Any] = []
        with pytest.raises(SystemExit) as end:
            commandline.run(given.append, arguments, **reader)
        return given[0] if given else end.value.code

    return parse


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("--name b --count -4 --out here", {"name": "b", "count": -4, "out": Path("here")}),
        ("--no-keep-all --mode slow", {"keep_all": False, "mode": "slow"}),
        ("--limit None --words a_b c", {"limit": None, "words": ("a_b", "c")}),
    ],
)
def test_a_line(parse: Parse, line: str, expected: dict[str, Any]) -> None:
    assert parse(line) == Args(**expected)


def test_a_reader_of_its_own(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert parse("x", reader=lambda arguments: arguments(name=sys.argv[1])) == Args("x")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--coun 3", "there is no argument '--coun': did you mean --count?"),
        ("--keep-al", "there is no argument '--keep-al': did you mean --keep-all?"),
        ("--datadir x", "there is no argument '--datadir': did you mean --data-dir?"),
        ("--uot 3", "there is no argument '--uot': did you mean --out?"),
        ("--bogus 3", "there is no argument '--bogus': --help tells the arguments"),
        ("--foo 3", "there is no argument '--foo': --help tells the arguments"),
        ("--zzz", "there is no argument '--zzz': --help tells the arguments"),
        ("pgm", "there is no argument 'pgm': --help tells the arguments"),
        ("--count 3 pgm", "there is no argument 'pgm': --help tells the arguments"),
        ("--words -x", "there is no argument '-x': --help tells the arguments"),
    ],
)
def test_an_unknown_argument(
    parse: Parse, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    assert parse(line) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_help_is_broken_by_the_screen_not_by_the_source(
    parse: Parse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    assert parse("--help", Explained) == 0
    text = "a docstring that stands on more than one line of the source, and that the help breaks"
    assert text in capsys.readouterr().out


def test_an_error_of_the_application_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(args: Args) -> None:
        raise BilevelError("first\nsecond")

    monkeypatch.setattr(sys, "argv", ["app.py"])
    with pytest.raises(SystemExit) as end:
        commandline.run(main, Args)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: first second\n"


@pytest.mark.parametrize(
    ("code", "status", "told"), [(None, 0, ""), (3, 3, ""), ("no licence", 1, "no licence\n")]
)
def test_an_application_that_exits_by_itself(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: object,
    status: int,
    told: str,
) -> None:
    def main(args: Args) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(sys, "argv", ["app.py"])
    with pytest.raises(SystemExit) as end:
        commandline.run(main, Args)
    assert (end.value.code, capsys.readouterr().err) == (status, told)


def test_a_reader_who_has_seen_enough_ends_it_quietly() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "applications/adv_training.py", "--help"]
    with subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_nothing_is_said_of_lines_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are left, Python would write once more at its end."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            commandline.run(lambda _: print("epoch 1", flush=True), Args, lambda _: Args())
    assert end.value.code == 1


@dataclass
class Resumed(Args):
    resume: bool = False


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            Resumed,
            "stopped; run the same command with --resume to continue from the last checkpoint, if "
            "one was written",
        ),
        (Args, "stopped"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_application_says_how_to_go_on_if_it_can(
    capsys: pytest.CaptureFixture[str], number: signal.Signals, arguments: type[Args], line: str
) -> None:
    """It may be stopped before anything is saved."""
    # As in a terminal: a shell's background jobs ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert stopped(number, arguments) == 128 + number
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == f"{line}\n"


def stopped(number: signal.Signals, arguments: type[Args] = Args) -> object:
    """The exit status of an application that is sent a signal."""
    with pytest.raises(SystemExit) as end:
        commandline.run(lambda _: os.kill(os.getpid(), number), arguments, lambda _: Args())
    return end.value.code


def test_a_handler_of_ones_own_stays() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        assert stopped(signal.SIGTERM) == 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert heard == [signal.SIGTERM]


@dataclass
class Wider(Explained):
    width: int = 200
    """How wide a poster is."""


def test_help_of_an_argument_is_that_of_the_class_that_has_it_last(
    parse: Parse,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse("--help", Wider) == 0
    text = capsys.readouterr().out
    assert "How wide a poster is." in text
    assert "How wide a page is" not in text


def test_a_thread_that_fails_is_told_unless_it_only_fails_to_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorBoard's writer raises its error in the main thread too."""
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # which run replaces
    monkeypatch.setattr(threading, "__excepthook__", lambda failure: told.append(failure.exc_type))

    def main(args: Args) -> None:
        for error in (OSError("disk full"), ValueError("a mistake")):
            thread = threading.Thread(target=raises, args=(error,))
            thread.start()
            thread.join()

    with pytest.raises(SystemExit):
        commandline.run(main, Args, lambda arguments: arguments())
    assert told == [ValueError]


def raises(error: Exception) -> None:
    raise error
