"""Text is UTF-8 on every system, and a screen that lacks a letter shows another."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path for room in ("bilevel", "applications") for path in sorted((ROOT / room).rglob("*.py"))
]
ELSEWHERE = {"os.open", "Image.open", "safe_open"}


def without_encoding(source: str) -> Iterator[str]:
    """The calls that read or write text in whatever encoding the system has."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call):
            name = ast.unparse(call.func)
            modes = [part.value for part in call.args if isinstance(part, ast.Constant)]
            opens = name.endswith("open") and name not in ELSEWHERE
            binary = any(isinstance(mode, str) and "b" in mode for mode in modes)
            named = any(keyword.arg == "encoding" for keyword in call.keywords)
            if name.endswith(("read_text", "write_text")) or (opens and not binary):
                yield from [] if named else [ast.unparse(call)]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.read_text()", True),
        ("path.write_text('b')", True),
        ("open(path)", True),
        ("part.open('w', newline='')", True),
        ("part.open('wb')", False),
        ("path.read_text(encoding='utf-8')", False),
    ],
)
def test_what_is_found(source: str, found: bool) -> None:
    assert [*without_encoding(source)] == [source] * found


def test_every_file_is_read_and_written_as_utf_8() -> None:
    found = {
        path.name: calls
        for path in FILES
        if (calls := [*without_encoding(path.read_text(encoding="utf-8"))])
    }
    assert found == {}


APPLICATION = """
import sys
from dataclasses import dataclass
from pathlib import Path
from bilevel.experiment import ProgressBar, commandline
from bilevel.experiment.tables import Table, write_markdown

@dataclass
class Args:
    out: Path

def main(args):
    with ProgressBar("play") as bar:
        bar.show("η = 0.3", 1, 2)
    table = Table("Of η", ("η", "mean"), [("0.3", "1.0 ± 0.1")])
    table.print()
    write_markdown(args.out, [table])

commandline.run(main, Args, lambda arguments: arguments(Path(sys.argv[1])))
"""


def test_an_application_where_letters_are_ascii(tmp_path: Path) -> None:
    application, path = tmp_path / "application.py", tmp_path / "tables.md"
    application.write_text(APPLICATION, encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(
        [sys.executable, application, path],
        env={**os.environ, **ascii_only, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "play: ? = 0.3\n" in ended.stdout
    assert "1.0 ? 0.1" in ended.stdout
    assert "| 0.3 | 1.0 ± 0.1 |" in path.read_text(encoding="utf-8")
