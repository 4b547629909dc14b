"""Command lines from dataclasses, with errors as one line."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from bilevel import distributed
from bilevel.distributed.job import sigterm_is_free
from bilevel.errors import BilevelError, raise_unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Arguments = TypeVar("Arguments", bound="DataclassInstance")


def read(arguments: type[Arguments]) -> Arguments:
    """Parses the command line with tyro.

    Args:
        arguments: The dataclass of the arguments; their docstrings are the help.

    Returns:
        The parsed arguments.

    Raises:
        BilevelError: If a value is bad or an argument unknown; it names the nearest known one.
        SystemExit: After ``--help``.
    """
    import tyro

    _join_help_lines(arguments)
    page = io.StringIO()
    try:
        with contextlib.redirect_stderr(page):
            parsed, unknown = tyro.cli(arguments, return_unknown_args=True)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise BilevelError(f"{_sentence(page.getvalue())}; --help tells the arguments") from None
    if unknown:
        known = ["--" + field.name.replace("_", "-") for field in fields(arguments)]
        raise_unknown("argument", unknown[0], known, "--help tells the arguments")
    return parsed


def run(
    main: Callable[[Arguments], None],
    arguments: type[Arguments],
    reader: Callable[[type[Arguments]], Arguments] = read,
    *,
    joins: bool = False,
) -> None:
    """Turns a dataclass into a command line, runs ``main`` on it and ends the process.

    Bad arguments and bad data end the process with exit status 2 and one line on the standard
    error, without a traceback; so do Ctrl+C, and SIGTERM unless it has a handler already.

    Args:
        main: The application.
        arguments: The dataclass of its arguments.
        reader: Parses the command line; an application with its own works without tyro.
        joins: Whether the processes of ``torchrun`` share the work, see ``bilevel.distributed``.
            Otherwise they are refused.

    Raises:
        SystemExit: Always: 0, 2 for bad input, 130 if interrupted, 143 if terminated.
    """
    threading.excepthook = thread_failed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an encoding without ε must not end a run
    status = 0
    try:
        _join(joins)
        with _sigterm_interrupts():
            main(reader(arguments))
    except BilevelError as error:
        line = " ".join(str(error).splitlines())  # it may quote text of several lines
        distributed.print_once(f"error: {line}")
        status = 2
    except KeyboardInterrupt as interrupt:
        message = "stopped"
        if any(field.name == "resume" for field in fields(arguments)):
            message += (
                "; run the same command with --resume to continue from the last checkpoint, if one "
                "was written"
            )
        distributed.print_once(message)
        status = 128 + (signal.SIGTERM if interrupt.args else signal.SIGINT)
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that no flush fails
        status = 1
    except SystemExit as end:  # after --help, or when the job is ended
        if isinstance(end.code, str):
            distributed.print_once(end.code)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    distributed.leave(status)


def _join(joins: bool) -> None:
    distributed.join()
    if distributed.world_size() > 1 and not joins:
        raise BilevelError(
            f"this application runs in one process and {distributed.world_size()} were started: "
            "they would overwrite each other's files; start it with python"
        )


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Within the block SIGTERM, which a cluster sends before it ends a job, acts like Ctrl+C."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    if not sigterm_is_free():
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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


def thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Ignores OSErrors, which TensorBoard's writer thread raises again in the main thread.

    For ``threading.excepthook``.

    Args:
        failure: What ended a thread.
    """
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)
