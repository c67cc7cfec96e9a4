"""What a sub-command hands back: words for people, one JSON object for scripts, an error in one sentence."""
import argparse
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Failed(Exception):
    """What was asked for cannot be done; the text names what and where, in one sentence."""


def add_json_option(parser):
    parser.add_argument("--json", type=_writable, metavar="FILE", help="write the result there as one JSON object")


def _writable(text):
    """The path of a file that can be written in the end; known before the work begins."""
    path = Path(text)
    target = path if path.exists() else path.absolute().parent
    if path.is_dir() or not os.access(target, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: it must be a file in a folder of yours")
    return path


def write_json(path, document):
    """Write the document where `--json` says; nothing where it was not given."""
    if path is not None:
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_failure(path, text):
    """What `write_json` would have written is not there: say so, in place of an older result."""
    write_json(path, {"failed": text})


def say(text):
    print(text, flush=True)


def say_figures(figures):
    """One line of what a dictionary holds but its problems, and a line each of those."""
    say(", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in figures.items()
                  if name != "problems" and value not in ({}, None)))
    for problem in figures.get("problems", ()):
        say(f"not well: {problem}")


def _text(value):
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name}: {_text(member)}" for name, member in value.items()) + ")"
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextmanager
def progress(description, total):
    """A progress bar on a terminal; gives the function to call with how much more is done."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count=1: bar.advance(task, count)
