"""What every gateway process does, whatever its clients speak: it joins the exchange, listens, and ends in order."""
import argparse
import asyncio
import errno
import resource
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from typing import NamedTuple

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


class Kind(NamedTuple):
    """What differs between gateways."""
    module: str
    name: str                  # of the process, before its number
    section: str               # of the configuration
    description: str
    other_address: str         # how to choose one, in words
    fronts: object             # (bridge, answers, catalog, the section's settings, data) -> what is served:
                               # first the one that listens; each with `sweep` and `stop`


async def serve(kind, process, bridge, answers, catalog, settings):
    """Serve on (host, port) of `settings`, the section's, until the process is told to stop; what is being answered by
    then is answered.

    Raises OSError where the address cannot be had.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def tell():
        process.stopping = True
        stop.set()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, tell)
    bridge.attach(loop)
    fronts = kind.fronts(bridge, answers, catalog, settings, process.data)
    front = fronts[0]
    heart = asyncio.ensure_future(_beat(process, fronts))
    await _learn_catalog(process, answers)
    if process.stopping:
        return
    # Several gateways share the port; a single one takes it alone, so that no other exchange shares it unnoticed.
    sockets = bind_sockets(settings.port, settings.host, backlog=BACKLOG, reuse_port=settings.gateways > 1)
    for bound in sockets:
        front.listen(bound)
    process.ready()
    say(process.name, f"serves {', '.join(map(_address, sockets))}")
    await stop.wait()
    seconds = settings.timeout_ms / 1000 + STOP_SECONDS
    await asyncio.gather(*(each.stop(seconds) for each in fronts))
    heart.cancel()


async def _beat(process, fronts):
    beats = 0
    while True:
        process.beat()
        beats += 1
        if beats % SWEEP_BEATS == 0:
            for front in fronts:
                front.sweep(time.monotonic_ns())
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


def main(kind, argv=None):
    die_with_parent()
    hurry()
    parser = argparse.ArgumentParser(prog=kind.module, description=kind.description)
    parser.add_argument("--config", required=True, help="the configuration, a TOML file")
    parser.add_argument("--data", required=True, help="the data directory")
    parser.add_argument("--index", required=True, type=int, help="which of the configuration's gateways, from 0")
    options = parser.parse_args(argv)
    name, section = f"{kind.name}-{options.index}", kind.section
    try:
        configured = configuration.load(options.config)
        settings = getattr(configured, section)
        if not 0 <= options.index < settings.gateways:
            sys.exit(f"{name}: --index must be from 0 to {settings.gateways - 1}, as [{section}] gateways says")
        kernel_cache.ensure_compiled(configured.cache_root(options.data))
    except (ConfigurationError, CompilationFailed) as problem:
        sys.exit(f"{name}: {problem}")
    from gateways.answers import Answers  # late: the cache of its kernels is chosen by now
    from gateways.bridge import Bridge
    from gateways.catalog import Catalog

    role = configured.role_of(name)
    process = Process(name, role, options.data, configured.rings)
    files = allow_files(settings.connections_max + OTHER_FILES)
    if files <= OTHER_FILES:
        sys.exit(f"{name}: the system's limit of open files is {files}, and {OTHER_FILES} are for the gateway itself:"
                 " raise it (ulimit -Hn, or LimitNOFILE of the service)")
    if files < settings.connections_max + OTHER_FILES:
        settings = replace(settings, connections_max=files - OTHER_FILES)
        say(name, f"takes {files - OTHER_FILES} connections instead of {section}.connections_max: the system's limit of"
            f" open files is {files} (ulimit -Hn, or LimitNOFILE of the service)")
    catalog = Catalog(configured.limits)
    bridge = Bridge(process, role - Role.GATEWAY, settings.timeout_ms, catalog, files)
    bridge.take_over()
    answers = Answers(bridge, catalog, partial(fatal, process.data, name), configured.http.pretty,
                      configured.http.batch_max)
    try:
        event_loop.run(serve(kind, process, bridge, answers, catalog, settings))
    except OSError as problem:
        advice = f": stop what serves it, or choose another with {kind.other_address}" \
            if problem.errno == errno.EADDRINUSE else ""
        address = f"{settings.host}:{settings.port}"
        fatal(process.data, name, f"cannot listen on {address}: {problem.strerror}{advice}")
        sys.exit(1)
