"""`exchange conformance`: replay recordings against exchanges of their own and compare every answer.

A recording is JSON Lines: first its meta line with the configuration, then requests with the answers to expect, and
instructions between them. Nothing is waited for: what is built shows each write at once.
"""
import argparse
import gzip
import json
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from shm import configuration
from shm.configuration import ConfigurationError
from tools import local_exchange, report
from tools.client import Client
from tools.report import Failed

DEVIATIONS = local_exchange.PROJECT / "tests" / "conformance_deviations.json"
PARTS = {                      # of the original, and the process that has taken its place; None: not built
    "matchengine": "matcher", "accesshttp": "gateway-0", "marketprice": None, "readhistory": None,
    "matcher": "matcher", "journaler": "journaler", "gateway": "gateway-0", "gateway-0": "gateway-0",
}
REQUEST_KEYS = {"request", "status", "response", "verb", "path", "headers", "compare", "deviates"}
INSTRUCTIONS = {"wait", "align", "note", "restart", "snapshot"}
SHOWN_CHARACTERS_MAX = 160


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "conformance", help="replay recordings and compare the answers",
        description="Replays each recording against a fresh exchange of its own and compares every answer. Requests of"
        " methods that are not built are counted and not sent. Exit code 0: every answer is equal.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH",
                        help="a recording, or a folder: its own *.jsonl, not those of its subfolders")
    parser.add_argument("--jobs", type=_count, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="how many exchanges run side by side (default: one a core)")
    parser.add_argument("--deviations", type=Path, metavar="FILE",
                        help="recorded requests that are proven wrong, with the one that was meant (default: the"
                        " project's own list)")
    report.add_json_option(parser)
    parser.set_defaults(run=run)


def _count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 1 on")
    return int(text)


def run(options):
    recordings = [read_recording(path) for path in find_recordings(options.paths)]
    deviations = read_deviations(options.deviations)
    local_exchange.prepare_kernels()
    started = time.monotonic()
    results = replay_all(recordings, deviations, options.jobs)
    summary = {**summarize(results), "seconds": round(time.monotonic() - started, 1)}
    report.write_json(options.json, summary)
    for result in results:
        for line in result.story():
            report.say(line)
    report.say(f"{summary['compared']} compared, {summary['equal']} equal, {len(summary['deviations'])} deviations,"
               f" {summary['not_built']} not built, in {len(results)} recordings and {summary['seconds']} s")
    return 0 if all(result.is_well for result in results) else 1


# Recordings.

@dataclass(frozen=True)
class Recording:
    path: Path
    settings: configuration.Configuration
    volatile: frozenset        # members whose values differ from run to run: only their types are compared
    lines: list                # (line number, line) each, but for the meta line


def find_recordings(paths):
    """The files that the paths name, each once; raises Failed for a path that names none."""
    found = {}
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise Failed(f"{path} has no recordings: a folder's own *.jsonl are taken, not those of its subfolders")
        found.update((file.resolve(), file) for file in files)
    return list(found.values())


def read_recording(path):
    """The Recording in a file of JSON Lines, plain or .gz; raises Failed naming the line that is none."""
    lines = []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    lines.append((number, _parse_line(path, number, text)))
    except FileNotFoundError:
        raise Failed(f"{path} is not there: name recordings, or a folder that has *.jsonl") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise Failed(f"{path} cannot be read: {error}") from None
    meta = lines[0][1].get("meta") if lines else None
    if not isinstance(meta, dict) or not isinstance(meta.get("config"), dict):
        raise Failed(f"{path} line 1: a recording begins with a meta line that has a config")
    for number, line in lines[1:]:
        _check_line(path, number, line)
    try:
        settings = configuration.from_recording(meta["config"])
    except (KeyError, TypeError, ConfigurationError) as error:
        raise Failed(f"{path} line 1: its config cannot be used: {error!s}") from None
    return Recording(path, settings, frozenset(meta.get("volatile", ())), lines[1:])


def _parse_line(path, number, text):
    try:
        line = json.loads(text)
    except ValueError as error:
        raise Failed(f"{path} line {number}: not JSON: {error}") from None
    if not isinstance(line, dict):
        raise Failed(f"{path} line {number}: not a JSON object")
    return line


def _check_line(path, number, line):
    if "request" in line:
        if unknown := sorted(line.keys() - REQUEST_KEYS) or sorted({"status", "response"} - line.keys()):
            raise Failed(f"{path} line {number}: {', '.join(unknown)} unknown or missing in a request line")
        if line.get("compare") not in (None, "types", "kline"):
            raise Failed(f"{path} line {number}: compare is {line['compare']!r}; known are types and kline")
    elif line.keys() & {"connect", "ws", "http", "close"}:
        raise Failed(f"{path} line {number}: this is a WebSocket recording; only those of HTTP can be replayed")
    elif not line.keys() & INSTRUCTIONS:
        raise Failed(f"{path} line {number}: neither a request nor an instruction: {shown(line)}")
    elif "restart" in line and line["restart"] not in PARTS:
        raise Failed(f"{path} line {number}: restarts {line['restart']!r}; known are {', '.join(PARTS)}")


# Deviations.

def read_deviations(path=None):
    """{(file name, line number): deviation} of the file, or of the project's own list where there is one."""
    if path is None and not DEVIATIONS.exists():
        return {}
    path = path or DEVIATIONS
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {(entry["file"], entry["line"]): {key: entry[key] for key in ("request", "meant", "proof")}
                for entry in entries}
    except OSError as error:
        raise Failed(f"the deviations {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise Failed(f"{path} is no list of deviations, each with file, line, request, meant and proof: {error!r}"
                     ) from None


# Replaying.

@dataclass
class Result:
    """What came of one recording."""
    path: Path
    compared: int = 0
    equal: int = 0
    not_built: int = 0
    differences: int = 0
    first_difference: dict = None
    deviations: list = field(default_factory=list)
    problem: str = None        # why it was not replayed to the end

    @property
    def is_well(self):
        return self.problem is None and self.equal + len(self.deviations) == self.compared

    def differs(self, number, request, difference):
        self.differences += 1
        if self.first_difference is None:
            self.first_difference = {
                "file": str(self.path), "line": number, "difference": difference, "request": request}

    def document(self):
        return {
            "file": str(self.path), "compared": self.compared, "equal": self.equal, "not_built": self.not_built,
            "deviations": self.deviations, "differences": self.differences,
            "first_difference": self.first_difference, "problem": self.problem,
        }

    def story(self):
        """Lines of what is not equal."""
        for deviation in self.deviations:
            yield f"{self.path} line {deviation['line']}: answered as meant; the recorded request is proven wrong"
        if self.first_difference is not None:
            first = self.first_difference
            yield f"{self.path} line {first['line']}: {first['difference']}"
            yield f"    the request: {shown(first['request'])}"
            if self.differences > 1:
                yield f"    and {self.differences - 1} more differences"
        if self.problem is not None:
            yield f"{self.path}: not replayed to the end: {self.problem}"


def replay_all(recordings, deviations, jobs):
    """A Result of each recording, in their order; up to `jobs` are replayed at once."""
    stopping = threading.Event()
    with report.progress("replaying", sum(len(recording.lines) for recording in recordings)) as advance, \
            ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(replay, recording, deviations, stopping, advance): recording for recording in recordings}
        try:
            for done in as_completed(pending):
                result = done.result()
                report.say(f"{result.path.name}: {result.compared} compared, {result.equal} equal,"
                           f" {result.not_built} not built" + ("" if result.is_well else "  <== not well"))
        except BaseException:
            stopping.set()     # the pool waits for its threads, and they for this
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in pending]


def replay(recording, deviations, stopping, advance):
    """The Result of a recording, replayed on a new exchange."""
    result = Result(recording.path)
    try:
        with tempfile.TemporaryDirectory(prefix="exchange-") as folder, \
                local_exchange.running(Path(folder) / "data", local_exchange.private(recording.settings)) as exchange, \
                Client(exchange.url) as client:
            for number, line in recording.lines:
                if stopping.is_set():
                    raise Failed("interrupted")
                replay_line(result, exchange, client, number, line, recording.volatile, deviations)
                advance()
    except Failed as problem:
        result.problem = str(problem)
    return result


def replay_line(result, exchange, client, number, line, volatile, deviations):
    """Do what one line of a recording says, and count what comes of it."""
    if PARTS.get(line.get("restart")):
        exchange.restart(PARTS[line["restart"]])
    if PARTS.get(line.get("snapshot")):
        exchange.take_snapshot()
    if "request" not in line:
        return
    request = line["request"]
    if is_not_built(request):
        result.not_built += 1
        return
    deviation = deviations.get((result.path.name, number))
    if deviation is not None and deviation["request"] != request:
        deviation = None       # of another recording of this name
    sent = request if deviation is None else deviation["meant"]
    status, body = client.send(
        sent.encode() if isinstance(sent, str) else json.dumps(with_present_time(sent)).encode(),
        line.get("verb", "POST"), line.get("path", "/"), line.get("headers", {}))
    result.compared += 1
    difference = difference_of_answers(line, status, body, volatile)
    if difference:
        result.differs(number, request, difference)
    elif deviation is None:
        result.equal += 1
    else:
        result.deviations.append({"file": str(result.path), "line": number, **deviation})


def is_not_built(request):
    """Whether a request names a method that the exchange will answer one day."""
    from gateways.protocol import NOT_BUILT  # late: the cache of kernels is chosen by now

    method = request.get("method") if isinstance(request, dict) else None
    return isinstance(method, str) and method in NOT_BUILT


def with_present_time(value):
    """The request with each {"$now": N} replaced by the present time, in seconds, + N."""
    if isinstance(value, dict):
        if value.keys() == {"$now"}:
            return int(time.time()) + value["$now"]
        return {key: with_present_time(member) for key, member in value.items()}
    return [with_present_time(member) for member in value] if isinstance(value, list) else value


# Comparing.

def difference_of_answers(line, status, body, volatile):
    """What differs between a recorded answer and this one, in words; None where nothing does."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = body.decode("utf-8", "replace")
    if status != line["status"]:
        return f"HTTP status: expected {line['status']}, got {status or 'no answer'} with {shown(answer)}"
    return difference(line["response"], answer, volatile, types_only=line.get("compare") == "types")


def difference(expected, got, volatile=(), path="", types_only=False):
    """The first difference between two JSON values, in words; None where there is none.

    Of `volatile` members only the types count, of all where `types_only`; an error may have a member `data` more.
    """
    if isinstance(expected, dict) and isinstance(got, dict):
        details = {"data"} if path.endswith(".error") else set()
        for key in sorted(expected.keys() ^ got.keys()):
            if key in expected:
                return f"{path or 'answer'}: {key} is missing"
            if key not in details:
                return f"{path or 'answer'}: {key} is too much: {shown(got[key])}"
        return _first(difference(value, got[key], volatile, f"{path}.{key}", types_only or key in volatile)
                      for key, value in expected.items())
    if isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got) and not types_only:
            return (f"{path or 'answer'}: expected {len(expected)} elements, {shown(expected)},"
                    f" got {len(got)}, {shown(got)}")
        return _first(difference(one, other, volatile, f"{path}[{index}]", types_only)
                      for index, (one, other) in enumerate(zip(expected, got)))
    if _kind(expected) is _kind(got) and (types_only or expected == got):
        return None
    return f"{path or 'answer'}: expected {shown(expected)}, got {shown(got)}"


def _first(differences):
    return next(filter(None, differences), None)


def _kind(value):
    return float if type(value) is int else type(value)  # one number is like another: JSON knows no integers


def shown(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "..."


# The summary.

def summarize(results):
    """The document of `--json`."""
    return {
        "compared": sum(result.compared for result in results),
        "equal": sum(result.equal for result in results),
        "not_built": sum(result.not_built for result in results),
        "first_difference": next(filter(None, (result.first_difference for result in results)), None),
        "deviations": [deviation for result in results for deviation in result.deviations],
        "files": [result.document() for result in results],
    }
