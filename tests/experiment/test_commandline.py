"""Command lines by tyro, and by argparse where it is missing: one line gives the same arguments."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from bilevel import BilevelError
from bilevel.experiment import commandline


@dataclass
class Args:
    """One of each type; 100 % plain.

    Not in the description.
    """

    name: str = "a"
    count: int = 3
    rate: float = 0.1
    out: Path = Path("runs")
    keep_all: bool = True
    smoke: bool = False
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = 5
    note: str | None = None
    old_style: Optional[float] = None  # noqa: UP045
    place: Path | None = None
    kind: Literal["x", "y"] | None = "x"
    words: tuple[str, ...] = ("a", "b%")
    marks: tuple[float, ...] | None = None
    letters: tuple[Literal["p", "q"], ...] = ()
    made: tuple[int, ...] = field(default_factory=lambda: (1, 2))


@dataclass
class Required:
    """What must be given."""

    number: int


@dataclass
class Explained:
    width: int = 80
    """How wide a page is: a docstring that stands on more than one
    line of the source, and that the help breaks where the screen asks for it."""


@dataclass
class Pair:
    start: tuple[float, float] = (0.0, 0.0)


@dataclass
class Anything:
    value: Any = None


@dataclass
class Levels:
    level: Literal[1, 2] = 1


@dataclass
class Either:
    value: int | str | None = None


@dataclass
class Several:
    values: list[int] = field(default_factory=list)


@dataclass
class Maybe:
    maybe: bool | None = None


Parse = Callable[..., Any]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """What ``main`` is given; what else there is to say is in the exit."""

    def parse(line: str, arguments: type[Any] = Args) -> Any:
        monkeypatch.setattr(sys, "argv", ["app.py", *line.split()])
        given: list[Any] = []
        with pytest.raises(SystemExit) as end:
            commandline.run(given.append, arguments)
        return given[0] if given else end.value.code

    return parse


@pytest.fixture
def without_tyro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)


LINES = {
    "": {},
    "--name b --count 4 --rate 1e-3 --out here": {
        "name": "b", "count": 4, "rate": 1e-3, "out": Path("here"),
    },
    "--no-keep-all --smoke": {"keep_all": False, "smoke": True},
    "--keep-all --no-smoke": {},
    "--mode slow --letters p q p": {"mode": "slow", "letters": ("p", "q", "p")},
    "--limit None --kind None": {"limit": None, "kind": None},
    "--limit 7 --note None --old-style 0.5 --place here --kind y": {
        "limit": 7, "old_style": 0.5, "place": Path("here"), "kind": "y",
    },
    "--name None --out None": {"name": "None", "out": Path("None")},
    "--words --made 3": {"words": (), "made": (3,)},
    "--words a_b c --marks 1 2.5 --smoke": {
        "words": ("a_b", "c"), "marks": (1.0, 2.5), "smoke": True,
    },
    "--marks None": {},
    "--marks": {"marks": ()},
    "--count=-4 --rate -1 --marks -1 -0.5": {"count": -4, "rate": -1.0, "marks": (-1.0, -0.5)},
    "--keep_all --no_keep_all --old_style=2": {"keep_all": False, "old_style": 2.0},
    "--count 1 --count 2 --words a --words b": {"count": 2, "words": ("b",)},
    "--rate inf --name=": {"rate": float("inf"), "name": ""},
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_read_alike_with_tyro_and_without(
    parse: Parse, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    by_tyro = parse(line)
    monkeypatch.setitem(sys.modules, "tyro", None)
    plain = parse(line)
    assert plain == by_tyro == Args(**LINES[line])
    assert repr(plain) == repr(by_tyro)  # 1 == 1.0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--count many", "argument --count: invalid int value: 'many'; --help tells"),
        ("--limit many", "argument --limit: invalid int value: 'many'; --help tells"),
        ("--marks 1 x", "argument --marks: invalid float value: 'x'; --help tells"),
        ("--count", "argument --count: expected one argument; --help tells"),
        ("--name --smoke", "argument --name: expected one argument; --help tells"),
        ("--mode None", "argument --mode: invalid choice: 'None' .*fast.*slow.*; --help tells"),
        ("--kind z", "argument --kind: invalid choice: 'z' .*x.*y.*; --help tells"),
        ("--letters p z", "argument --letters: invalid choice: 'z' .*p.*q.*; --help tells"),
    ],
)
def test_a_bad_value_without_tyro(
    without_tyro: None, parse: Parse, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    assert parse(line) == 2
    assert re.fullmatch(f"error: {told} the arguments\n", capsys.readouterr().err)


@pytest.mark.parametrize("tyro", [True, False])
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--coun 3", "there is no argument --coun: did you mean --count?"),
        ("--keep-al", "there is no argument --keep-al: did you mean --keep-all?"),
        ("--zzz", "there is no argument --zzz: --help tells the arguments"),
        ("pgm", "there is no argument pgm: --help tells the arguments"),
        ("--count 3 pgm", "there is no argument pgm: --help tells the arguments"),
        ("--words -x", "there is no argument -x: --help tells the arguments"),
    ],
)
def test_an_unknown_argument(
    parse: Parse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tyro: bool,
    line: str,
    told: str,
) -> None:
    if not tyro:
        monkeypatch.setitem(sys.modules, "tyro", None)
    assert parse(line) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_a_field_without_a_default_must_be_given(
    without_tyro: None, parse: Parse, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse("--number 3", Required) == Required(3)
    assert parse("", Required) == 2
    assert re.fullmatch(r"error: .*required: --number; --help .*\n", capsys.readouterr().err)


def test_help_is_broken_by_the_screen_not_by_the_source(
    parse: Parse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    assert parse("--help", Explained) == 0
    text = "a docstring that stands on more than one line of the source, and that the help breaks"
    assert text in capsys.readouterr().out


def test_help_without_tyro(
    without_tyro: None, parse: Parse, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse("--help") == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "One of each type; 100 % plain." in page
    assert "Not in the description" not in page
    for told in (
        "--count COUNT default: 3",
        "--keep-all, --no-keep-all default: True",
        "--mode {fast,slow} default: fast",
        "--words [WORDS ...] default: ('a', 'b%')",
    ):
        assert told in page
    assert "MISSING" not in page


@pytest.mark.parametrize("arguments", [Pair, Anything, Levels, Either, Several, Maybe])
def test_a_type_that_argparse_cannot_read(
    without_tyro: None,
    parse: Parse,
    capsys: pytest.CaptureFixture[str],
    arguments: type[Any],
) -> None:
    assert parse("", arguments) == 2
    told = r"error: argument \w+ is of type .*: argparse reads plain types only; install tyro\n"
    assert re.fullmatch(told, capsys.readouterr().err)


def test_an_error_of_the_application_is_one_line(
    without_tyro: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    without_tyro: None,
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
