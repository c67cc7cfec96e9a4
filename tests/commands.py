"""The console command `exchange` as people and scripts use it: another process, its words, its exit code, its JSON."""
import json
import subprocess
import sys
from typing import NamedTuple

from tests.launched import ROOT


class Ended(NamedTuple):
    code: int
    out: str
    error: str
    document: dict             # what --json wrote; None where it did not


def exchange(json_file, *arguments):
    """Run `exchange ARGUMENTS --json FILE` to its end."""
    json_file.unlink(missing_ok=True)
    ended = subprocess.run(
        [sys.executable, "-m", "tools.cli", *map(str, arguments), "--json", str(json_file)], cwd=ROOT,
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return Ended(ended.returncode, ended.stdout, ended.stderr,
                 json.loads(json_file.read_text(encoding="utf-8")) if json_file.exists() else None)
