"""Tables of results: as Markdown in ``tables.md``, and on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.table
from rich.console import Console

from bilevel.experiment.files import atomic_write


@dataclass(frozen=True)
class Table:
    """A table to print.

    Args:
        title: What it shows.
        header: The names of its columns.
        rows: Its cells as text.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table as Markdown."""
        aligned = ("---", *("---:" for _ in self.header[1:]))
        lines = (self.header, aligned, *self.rows)
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_markdown(path: Path, tables: Sequence[Table], *preamble: str) -> None:
    """Writes paragraphs of text, then the tables."""
    with atomic_write(path) as part:
        part.write_text("\n\n".join([*preamble, *(table.markdown() for table in tables)]) + "\n")


def print_tables(tables: Sequence[Table]) -> None:
    """Prints the tables on the screen."""
    console = Console()
    for table in tables:
        grid = rich.table.Table(*table.header, title=table.title)
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)
