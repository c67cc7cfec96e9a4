"""`exchange bench`: benchmarks of the core and of the whole exchange, each beside a stated peer of the same run."""
from itertools import chain
from pathlib import Path

from tools import bench_exchange, binary_bench, disk, http_bench, local_exchange, machine, order_flow, wrk
from tools.report import Failed, add_json_option, say, say_figures, write_json

ROUNDS, SECONDS = 3, 5
COINBASE = order_flow.recorded(order_flow.COINBASE)
NOT_SAID = ("rounds",)         # of a result: they are for scripts


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "bench", help="benchmarks: operations a second, percentiles, and the ratio to a peer of the same run",
        description="Measures the core in this process and the whole exchange in turn with a Tornado hello-world"
        " server under wrk. Each benchmark of the exchange tells the medians of its rounds, and counts accepted"
        " requests only.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these benchmarks, or those that begin so; all")
    parser.add_argument("--list", action="store_true", help="list the names")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N",
                        help="of each benchmark of the exchange, hello-world and exchange in turn (default:"
                        " %(default)s)")
    parser.add_argument("--seconds", type=int, default=SECONDS, metavar="S",
                        help="of each half of such a round (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=local_exchange.PROJECT / "build", metavar="DIR",
                        help="where their data directories are made for a while; on a disk (default: %(default)s)")
    parser.add_argument("--book", type=Path, metavar="FILE",
                        help=f"the Coinbase book (default: {COINBASE}, where it is there)")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options):
    """Run what was asked for; returns the exit code."""
    local_exchange.prepare_kernels()
    from tools import core_bench  # late: it imports kernels
    names = (*core_bench.NAMES, *http_bench.NAMES, *binary_bench.NAMES)
    if options.list:
        for name in names:
            say(name)
        return 0
    for option, value in (("--rounds", options.rounds), ("--seconds", options.seconds)):
        if value < 1:
            raise Failed(f"{option} {value} is too few: 1 or more")
    for asked in options.names:
        if not any(name.startswith(asked) for name in names):
            raise Failed(f"no benchmark begins with {asked}: exchange bench --list tells them")

    def wanted(name):
        return not options.names or any(name.startswith(asked) for asked in options.names)
    over_core = core_bench.run(wanted) if any(map(wanted, core_bench.NAMES)) else ()
    over_http = [name for name in http_bench.NAMES if wanted(name)]
    over_binary = [name for name in binary_bench.NAMES if wanted(name)]
    left_out, fill_from_coinbase = [], None
    if not http_bench.COINBASE_NAMES.isdisjoint(over_http):
        if options.book or COINBASE.exists():
            fill_from_coinbase = bench_exchange.FillFrom(options.book or COINBASE)
        else:
            left_out = [name for name in over_http if name in http_bench.COINBASE_NAMES]
            over_http = [name for name in over_http if name not in left_out]
            say(f"left out: {', '.join(left_out)}: {COINBASE} is not there, and no --book FILE names a Coinbase book")
    document = {"commit": machine.commit(), "machine": machine.figures()}
    if over_http or over_binary:
        wrk.require()
        document["disk"] = disk.figures(options.data)
    say_figures(document)
    results = []
    place = options.rounds, options.seconds, options.data
    for result in chain(over_core, http_bench.run(over_http, *place, fill_from_coinbase),
                        binary_bench.run(over_binary, *place)):
        say_figures({name: value for name, value in result.items() if name not in NOT_SAID})
        results.append(result)
    write_json(options.json, {**document, "results": results, "left_out": left_out})
    return 0
