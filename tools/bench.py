"""`exchange bench`: benchmarks of the core and of the whole exchange, each beside a stated peer of the same run."""
from itertools import chain

from tools import local_exchange
from tools.report import Failed, add_json_option, say, say_figures, write_json

HTTP_SECONDS = 5


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "bench", help="benchmarks: operations a second, percentiles, and the ratio to a peer of the same run")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these benchmarks, or those that begin so; all")
    parser.add_argument("--list", action="store_true", help="list the names")
    parser.add_argument("--seconds", type=int, default=HTTP_SECONDS, metavar="S",
                        help="of each http benchmark (default %(default)s)")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options):
    """Run what was asked for; returns the exit code."""
    local_exchange.prepare_kernels()
    from tools import core_bench, http_bench  # late: they import kernels
    names = (*core_bench.NAMES, *http_bench.NAMES)
    if options.list:
        for name in names:
            say(name)
        return 0
    if options.seconds < 1:
        raise Failed(f"--seconds {options.seconds} is too few: 1 or more")
    for asked in options.names:
        if not any(name.startswith(asked) for name in names):
            raise Failed(f"no benchmark begins with {asked}: exchange bench --list tells them")

    def wanted(name):
        return not options.names or any(name.startswith(asked) for asked in options.names)
    results = []
    for result in chain(core_bench.run(wanted), http_bench.run(wanted, options.seconds)):
        say_figures({**result, "problems": []})
        results.append(result)
    write_json(options.json, {"results": results})
    return 0
