"""Command lines from dataclasses, with errors as one line."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import itertools
import re
import threading
from collections.abc import Callable
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from bilevel import distributed
from bilevel.errors import BilevelError
from bilevel.experiment import commandline_plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Arguments = TypeVar("Arguments", bound="DataclassInstance")


def run(main: Callable[[Arguments], None], arguments: type[Arguments]) -> None:
    """Turns a dataclass into a command line, runs ``main`` on it and ends the process.

    tyro parses the command line; if it is not installed, ``argparse`` does, for plain types.

    Under ``torchrun`` the process first joins the others, see ``bilevel.distributed``.

    Bad arguments and bad data end the process with exit status 2 and one line on the standard
    error, without a traceback.

    Args:
        main: The application.
        arguments: The dataclass of its arguments; their docstrings are the help.

    Raises:
        SystemExit: Always: 0, 2 for bad input, 130 if interrupted.
    """
    threading.excepthook = _thread_failed
    status = 0
    try:
        distributed.join()
        main(_parse(arguments))
    except BilevelError as error:
        line = " ".join(str(error).splitlines())  # it may quote text of several lines
        distributed.print_once(f"error: {line}")
        status = 2
    except KeyboardInterrupt:
        distributed.print_once(
            "stopped; the same command with --resume goes on from the last checkpoint"
        )
        status = 130
    except SystemExit as end:  # after --help, or when the job is ended
        if isinstance(end.code, str):
            distributed.print_once(end.code)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    distributed.leave(status)


def _parse(arguments: type[Arguments]) -> Arguments:
    """Parses the command line; raises on unknown arguments, with the nearest known one."""
    read = _read_by_tyro if importlib.util.find_spec("tyro") else commandline_plain.read
    parsed, unknown = read(arguments)
    if unknown:
        known = ["--" + field.name.replace("_", "-") for field in fields(arguments)]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help tells the arguments"
        raise BilevelError(f"there is no argument {unknown[0]}: {hint}")
    return parsed


def _read_by_tyro(arguments: type[Arguments]) -> tuple[Arguments, list[str]]:
    """The parsed arguments, and the unknown ones."""
    import tyro

    _join_help_lines(arguments)
    page = io.StringIO()
    try:
        with contextlib.redirect_stderr(page):
            return tyro.cli(arguments, return_unknown_args=True)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise BilevelError(f"{_sentence(page.getvalue())}; --help tells the arguments") from None


def _join_help_lines(arguments: type[Arguments]) -> None:
    """Gives tyro docstrings of one line, since it breaks the help where the source is broken."""
    import docstring_parser

    lines = {
        argument.arg_name: " ".join(argument.description.split())
        for part in reversed(arguments.__mro__[:-1])
        for argument in docstring_parser.parse_from_object(part).params
        if argument.description
    }
    for field in fields(arguments):
        if field.name in lines:
            field.metadata = MappingProxyType({"help": lines[field.name], **field.metadata})


def _sentence(page: str) -> str:
    """The first paragraph of tyro's error message, without title, frame and colours."""
    lines = re.sub(r"\x1b\[[\d;]*m", "", page).splitlines()[1:]
    paragraphs = itertools.groupby(
        (line.strip("│ ") for line in lines), key=lambda line: bool(line.strip("─-"))
    )
    text = next((" ".join(group) for is_text, group in paragraphs if is_text), "bad arguments")
    return text.removeprefix("Error ").removesuffix(".")


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Ignores OSErrors, which TensorBoard's writer thread raises again in the main thread."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)
