"""The core and the plain reference agree on every reply, event and balance of random commands, and money is conserved.

`--oracle-commands 1000000` is a full run; `--oracle-seed` another one. A failure prints the few requests that do it.
"""
import json
import time
from collections import Counter
from pathlib import Path

from tests.oracle import episode
from tests.oracle.commands import PROFILES

RECORDINGS = Path(__file__).parent / "conformance" / "http"
CONFIG = json.loads((RECORDINGS / "q12_prec_zero_everywhere.jsonl").read_text().partition("\n")[0])["meta"]["config"]
EPISODE_COMMANDS = 2_000


def test_core_and_reference_agree_on_random_commands(request):
    wanted, seed = request.config.getoption("--oracle-commands"), request.config.getoption("--oracle-seed")
    print(f"{wanted} commands from seed {seed} on")
    codes, done, began = Counter(), 0, time.monotonic()
    while done < wanted:
        profile = PROFILES[seed % len(PROFILES)]
        count, found = episode.run(profile, CONFIG, seed, min(EPISODE_COMMANDS, wanted - done))
        codes.update(found)
        done += count
        seed += 1
    print(f"{done} commands in {time.monotonic() - began:.1f} s: {sorted(codes.items())}")
    assert done == wanted
