"""An HTTP gateway process: `python -m gateways.http --config FILE --data DIR --index N`."""
import argparse
import asyncio
import errno
import resource
import signal
import sys
import time
from dataclasses import replace
from functools import partial

from tornado.netutil import bind_sockets

from gateways import event_loop
from shm import configuration, kernel_cache
from shm.configuration import ConfigurationError
from shm.fatal_log import fatal
from shm.kernel_cache import CompilationFailed
from shm.log import say
from shm.process import HEARTBEAT_SECONDS, Process, die_with_parent, hurry
from shm.segments import Role

STOP_SECONDS = 1.0             # beyond the timeout, for the answers on their way
MATCHER_PAUSE_SECONDS = 0.1    # between looks for a matcher at start
SWEEP_BEATS = 10
OTHER_FILES = 64               # that a gateway has open beside its connections
BACKLOG = 1024                 # connections that the system keeps until they are accepted


async def serve(process, bridge, answers, catalog, settings):
    """Serve on (host, port) until the process is told to stop; what is being answered by then is answered.

    Raises OSError where the address cannot be had.
    """
    from gateways.front import Front  # late: the cache of its kernels is chosen by now
    from gateways.pages import Pages
    from gateways.plain_http import PlainServer

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def tell():
        process.stopping = True
        stop.set()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, tell)
    bridge.attach(loop)
    plain_server = PlainServer(answers, settings.http.body_bytes_max, Pages(bridge))
    front = Front(bridge, answers, plain_server, catalog, settings.http)
    heart = asyncio.ensure_future(_beat(process, (front, plain_server)))
    await _learn_catalog(process, answers)
    if process.stopping:
        return
    # Several gateways share the port; a single one takes it alone, so that no other exchange shares it unnoticed.
    sockets = bind_sockets(settings.http.port, settings.http.host, backlog=BACKLOG,
                           reuse_port=settings.http.gateways > 1)
    for bound in sockets:
        front.listen(bound)
    process.ready()
    say(process.name, f"serves {', '.join(map(_address, sockets))}")
    await stop.wait()
    seconds = settings.http.timeout_ms / 1000 + STOP_SECONDS
    await asyncio.gather(front.stop(seconds), plain_server.stop(seconds))
    heart.cancel()


async def _beat(process, servers):
    beats = 0
    while True:
        process.beat()
        beats += 1
        if beats % SWEEP_BEATS == 0:
            for server in servers:
                server.sweep(time.monotonic_ns())
        await asyncio.sleep(HEARTBEAT_SECONDS)


def allow_files(wanted):
    """Raise this process's limit of open files to what it wants, as far as it may; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


async def _learn_catalog(process, answers):
    """Wait for a matcher that tells the assets and markets, or for the signal to stop."""
    while not process.stopping:
        if await answers.try_to_learn():
            return
        await asyncio.sleep(MATCHER_PAUSE_SECONDS)


def _address(bound):
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main(argv=None):
    die_with_parent()
    hurry()
    parser = argparse.ArgumentParser(prog="gateways.http", description="Serves the exchange's HTTP interface.")
    parser.add_argument("--config", required=True, help="the configuration, a TOML file")
    parser.add_argument("--data", required=True, help="the data directory")
    parser.add_argument("--index", required=True, type=int, help="which of the configuration's gateways, from 0")
    options = parser.parse_args(argv)
    name = f"gateway-{options.index}"
    try:
        settings = configuration.load(options.config)
        if not 0 <= options.index < settings.http.gateways:
            sys.exit(f"{name}: --index must be from 0 to {settings.http.gateways - 1}, as [http] gateways says")
        kernel_cache.ensure_compiled(settings.cache_root(options.data))
    except (ConfigurationError, CompilationFailed) as problem:
        sys.exit(f"{name}: {problem}")
    from gateways.answers import Answers  # late: the cache of its kernels is chosen by now
    from gateways.bridge import Bridge
    from gateways.catalog import Catalog

    process = Process(name, Role.GATEWAY + options.index, options.data, settings.rings)
    files = allow_files(settings.http.connections_max + OTHER_FILES)
    if files <= OTHER_FILES:
        sys.exit(f"{name}: the system's limit of open files is {files}, and {OTHER_FILES} are for the gateway itself:"
                 " raise it (ulimit -Hn, or LimitNOFILE of the service)")
    if files < settings.http.connections_max + OTHER_FILES:
        settings = replace(settings, http=replace(settings.http, connections_max=files - OTHER_FILES))
        say(name, f"takes {files - OTHER_FILES} connections instead of http.connections_max: the system's limit of open"
            f" files is {files} (ulimit -Hn, or LimitNOFILE of the service)")
    catalog = Catalog(settings.limits)
    bridge = Bridge(process, options.index, settings.http.timeout_ms, catalog, files)
    bridge.take_over()
    answers = Answers(bridge, catalog, partial(fatal, process.data, name), settings.http.pretty,
                      settings.http.batch_max)
    try:
        event_loop.run(serve(process, bridge, answers, catalog, settings))
    except OSError as problem:
        advice = ": stop what serves it, or choose another with --http HOST:PORT" \
            if problem.errno == errno.EADDRINUSE else ""
        address = f"{settings.http.host}:{settings.http.port}"
        fatal(process.data, name, f"cannot listen on {address}: {problem.strerror}{advice}")
        sys.exit(1)


if __name__ == "__main__":
    main()
