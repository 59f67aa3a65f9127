"""What every command does with its results and failures: text for people, one JSON object for machines, exit codes."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import typer
from rich.console import Console

from attnsteer.compare.request import RequestError

FAILED: Final = 1
USAGE: Final = 2
DEBUG: Final = "ATTNSTEER_DEBUG"


def console() -> Console:
    """Return a console on standard output that leaves the text of others (prompts, paths) as it is."""
    return Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)


def say(text: str, *, quiet: bool = False) -> None:
    """Print a note for people on standard error, so that standard output stays clean."""
    if not quiet:
        typer.echo(text, err=True)


def hush_libraries() -> None:
    """Keep the notes of transformers and diffusers, which are written for programmers, off the terminal."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    if not os.environ.get(DEBUG):
        diffusers_logging.set_verbosity_error()
        transformers_logging.set_verbosity_error()


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


@contextmanager
def failures(as_json: bool) -> Iterator[None]:
    """Turn exceptions into a message and an exit code: 2 if the request is at fault, else 1.

    With `as_json` the message also goes to standard output as {"error": {...}}. Set ATTNSTEER_DEBUG=1 to see the
    traceback instead.
    """
    try:
        yield
    except (RequestError, FileExistsError) as error:
        _fail(error, USAGE, as_json)
    except KeyboardInterrupt as error:
        _fail(error, 130, as_json)
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError, ImportError) as error:
        _fail(error, FAILED, as_json)


def _fail(error: BaseException, code: int, as_json: bool) -> None:
    if os.environ.get(DEBUG):
        raise error
    message = str(error) or ("interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__)
    if isinstance(error, KeyError):
        message = f"missing {message}"
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": message, "exit_code": code}})
    typer.echo(f"attnsteer: {message}", err=True)
    raise typer.Exit(code) from error
