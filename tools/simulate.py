"""`exchange simulate`: the whole pipeline in one process, with a simulated disk, and faults from a seed."""
import argparse
import gc
import re
import sys
import time
from collections import Counter

from tools import local_exchange, report
from tools.report import Failed

SYNC_MODES = ("always", "interval", "none")
VIOLATIONS_MAX = 5             # stories that are told before it ends


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "simulate", help="the pipeline in one process, with crashes and a lying disk, from seeds",
        description="Runs gateways, matcher, journaler, followers and snapshots in one process on a simulated disk:"
        " kills between any two steps, power cuts that keep any part of what was not synced, errors of the disk, steps"
        " of the clock, reboots. A seed always does the same. Exit code 0: no promise was broken; else the story of"
        " each seed that breaks one is told, made as short as it goes.")
    parser.add_argument("--seeds", type=_seeds, default=range(1, 101), metavar="A..B", help="which (default: 1..100)")
    parser.add_argument("--sync", choices=SYNC_MODES, help="of the journal (default: the seed says)")
    parser.add_argument("--story", action="store_true", help="tell what happens in each seed, broken promise or not")
    report.add_json_option(parser)
    parser.set_defaults(run=run)


def _seeds(text):
    found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    if not found or (found[2] and int(found[2]) < int(found[1])):
        raise argparse.ArgumentTypeError(f"{text} must be a seed, or the first and the last one, such as 1..100")
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def run(options):
    local_exchange.prepare_kernels()
    sys.setswitchinterval(1.0)  # one thread runs at a time, and says so itself
    from tools.simulation.runs import run_seeds, shrunk  # late: the cache of kernels is chosen by now

    gc.freeze()                # what is there now stays
    began, injected, figures, violations = time.monotonic(), Counter(), Counter(), []
    with report.progress("seeds", len(options.seeds)) as advance:
        for outcome in run_seeds(options.seeds, options.sync, advance):
            injected += outcome.injected
            figures.update(seeds=1, operations=outcome.operations, records=outcome.sequence)
            if options.story:
                _tell(outcome)
            if outcome.violation is not None:
                shortest = shrunk(outcome)
                _tell(shortest)
                violations.append({"seed": outcome.plan.seed, "violation": str(outcome.violation),
                                   "story": shortest.story})
                if len(violations) == VIOLATIONS_MAX:
                    break
    seconds = time.monotonic() - began
    result = {"seeds": [options.seeds[0], options.seeds[-1]], "sync": options.sync, "run": figures["seeds"],
              "operations": figures["operations"], "records": figures["records"], "seconds": round(seconds, 1),
              "faults": dict(sorted(injected.items())), "violations": violations}
    report.write_json(options.json, result)
    report.say_figures({name: value for name, value in result.items() if name != "violations"})
    if violations:
        raise Failed(f"{len(violations)} of {figures['seeds']} seeds break a promise:"
                     f" {', '.join(str(violation['seed']) for violation in violations)}")
    return 0


def _tell(outcome):
    settings = ", ".join(f"{name} {value}" for name, value in vars(outcome.plan.settings).items())
    report.say(f"seed {outcome.plan.seed} ({settings}):")
    for number, line in enumerate(outcome.story, start=1):
        report.say(f"{number:4} {line}")
