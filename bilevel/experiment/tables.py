"""Tables of results: on the screen, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import mean, stdev

from bilevel.experiment.files import atomic_write


@dataclass(frozen=True)
class Table:
    """A table; columns of numbers are aligned to the right.

    Args:
        title: What it shows.
        header: The names of its columns.
        rows: Its cells as text.

    Example:
        >>> print(Table("Accuracy", ("method", "clean"), [("pgm", "0.5")]).markdown())
        ### Accuracy
        <BLANKLINE>
        | method | clean |
        | --- | ---: |
        | pgm | 0.5 |
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table as Markdown.

        Returns:
            A heading and the table.
        """
        return f"### {self.title}\n\n{markdown(self.header, self.rows)}"

    def print(self) -> None:
        """Prints the table on the screen."""
        import rich.table
        from rich.console import Console
        from rich.text import Text  # as it is: "[linf]" would be markup

        grid = rich.table.Table(title=Text(self.title, "table.title"))
        for name, right in zip(self.header, _numeric(self.header, self.rows), strict=True):
            # Folded where the screen is narrow: cut off, two rows might have the same name.
            grid.add_column(Text(name), justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            grid.add_row(*map(Text, row))
        Console().print(grid)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, without a title.

    Args:
        header: The names of its columns.
        rows: Its cells as text.

    Returns:
        Its lines.
    """
    rules = ["---:" if right else "---" for right in _numeric(header, rows)]
    lines = [[text.replace("|", r"\|") for text in cells] for cells in (header, rules, *rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write_markdown(path: Path, tables: Iterable[Table], *preamble: str) -> None:
    """Writes paragraphs of text, then the tables.

    Args:
        path: The file.
        tables: The tables.
        *preamble: The paragraphs.

    Raises:
        BilevelError: If it cannot be written.
    """
    with atomic_write(path) as part:
        text = "\n\n".join([*preamble, *(table.markdown() for table in tables)])
        part.write_text(text + "\n", encoding="utf-8")


def cell(value: str | float | None, spec: str = ".3f") -> str:
    """The text of a cell, a dash for None.

    Args:
        value: The value.
        spec: How a number is written.

    Returns:
        The text.

    Example:
        >>> cell("pgm"), cell(0.5), cell(1234.5, ".3g"), cell(None)
        ('pgm', '0.500', '1.23e+03', '–')
    """
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:{spec}}"


def mean_std(values: Sequence[float], decimals: int) -> str:
    """Mean ± standard deviation, with a minus sign.

    Args:
        values: The numbers.
        decimals: The number of decimals.

    Returns:
        The text; without a deviation that rounds to 0 or is not finite, a dash if there are no
        numbers.

    Example:
        >>> mean_std([-1.0, -2.0], 1), mean_std([1500.0], 0), mean_std([], 1)
        ('−1.5 ± 0.7', '1,500', '–')
    """
    if not values:
        return "–"
    spread = len(values) > 1 and all(map(isfinite, values))  # of others stdev raises
    deviation = stdev(values) if spread else 0.0
    middle = round(mean(values), decimals) + 0.0  # which is no −0
    text = f"{middle:,.{decimals}f}".replace("-", "−")
    return text + (f" ± {deviation:,.{decimals}f}" if round(deviation, decimals) else "")


def _numeric(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers; the first one has the names of the rows."""
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    return [False, *(all(map(_is_number, column)) for column in columns[1:])]


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number, or says that there is none."""
    return cell in {"", "–", "not measured"} or cell.lstrip("*+−-")[:1].isdigit()
