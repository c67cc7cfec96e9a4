"""An HTTP gateway process: `python -m gateways.http --config FILE --data DIR --index N`.

Any path, POST only; a connection's requests are answered in their order. The whole way of a call is in answers.py: this
module only carries bodies and answers, on Tornado's server.
"""
import argparse
import asyncio
import errno
import signal
import sys
import time
from email.utils import formatdate
from functools import partial

from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    ResponseStartLine,
    responses,
)
from tornado.netutil import bind_sockets

from shm import configuration, kernel_cache
from shm.configuration import ConfigurationError
from shm.fatal_log import fatal
from shm.kernel_cache import CompilationFailed
from shm.log import say
from shm.process import HEARTBEAT_SECONDS, Process, die_with_parent
from shm.segments import Role

HEADER_BYTES_MAX = 80 * 1024
IDLE_SECONDS_MAX = 3600        # of a kept connection
READ_AWAY_FACTOR = 16          # times body_bytes_max of a body too large are read, so that its sender hears why
LAST_WRITE_SECONDS_MAX = 5.0   # for a client to take its last answer
STOP_SECONDS = 1.0             # beyond the timeout, for the answers on their way
MATCHER_PAUSE_SECONDS = 0.1    # between looks for a matcher at start
LENGTH_DIGITS_MAX = 20         # of a Content-Length; Tornado hangs up on a longer one


class Server(HTTPServerConnectionDelegate):
    """Carries each request's body to `answers.answer` and the Answer back."""

    def __init__(self, answers, body_bytes_max):
        self.answers, self.body_bytes_max = answers, body_bytes_max
        self.stopping = False
        self._tasks = set()
        self._date = (0, "")   # of the last answer: second, text

    def start_request(self, _server_connection, connection):
        return _Message(self, connection)

    def start(self, work):
        """Run the coroutine; `drained` waits for it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drained(self, seconds):
        """Wait until nothing is being answered, at most so long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def write(self, connection, answer):
        headers = HTTPHeaders({"Date": self._now(), "Content-Length": str(len(answer.body))})
        if answer.body:
            headers["Content-Type"] = "application/json"
        close = answer.close or self.stopping
        if close:
            headers["Connection"] = "close"
        line = ResponseStartLine("HTTP/1.1", answer.status, responses[answer.status])
        written = connection.write_headers(line, headers, answer.body)  # a client that has gone is no error
        connection.finish()
        if close:
            await asyncio.wait({written}, timeout=LAST_WRITE_SECONDS_MAX)
            connection.close()

    def _now(self):
        second = int(time.time())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True))
        return self._date[1]


class _Message(HTTPMessageDelegate):
    """One request as it arrives."""

    def __init__(self, server, connection):
        self._server, self._connection = server, connection
        self._is_post = self._is_answered = False
        self._chunks, self._body_bytes = [], 0

    def headers_received(self, start_line, headers):
        self._is_post = start_line.method == "POST"
        announced = headers.get("Content-Length", "")
        if announced.isdecimal() and len(announced) <= LENGTH_DIGITS_MAX:
            self._refuse_far_too_large(int(announced))

    def data_received(self, chunk):
        self._body_bytes += len(chunk)
        if self._body_bytes <= self._server.body_bytes_max:
            self._chunks.append(chunk)
        else:
            self._refuse_far_too_large(self._body_bytes)

    def finish(self):
        if not self._is_answered:
            self._server.start(self._answer())

    async def _answer(self):
        answers, body_bytes_max = self._server.answers, self._server.body_bytes_max
        if self._body_bytes > body_bytes_max:
            answer = answers.too_large(self._body_bytes, body_bytes_max)
        elif not self._is_post or not self._body_bytes:
            answer = answers.no_request()
        else:
            answer = await answers.answer(b"".join(self._chunks))
        await self._server.write(self._connection, answer)

    def _refuse_far_too_large(self, body_bytes):
        """Answer at once and hang up, without reading the rest."""
        if body_bytes > READ_AWAY_FACTOR * self._server.body_bytes_max and not self._is_answered:
            self._is_answered = True
            answer = self._server.answers.too_large(body_bytes, self._server.body_bytes_max)
            self._server.start(self._server.write(self._connection, answer))


def listener_of(server):
    """Tornado's server for it; it listens nowhere yet."""
    return HTTPServer(server, max_header_size=HEADER_BYTES_MAX, max_body_size=10**LENGTH_DIGITS_MAX,
                      idle_connection_timeout=IDLE_SECONDS_MAX)


async def serve(process, bridge, answers, settings):
    """Serve on (host, port) until the process is told to stop; what is being answered by then is answered.

    Raises OSError where the address cannot be had.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def tell():
        process.stopping = True
        stop.set()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, tell)
    heart = asyncio.ensure_future(_beat(process))
    bridge.attach(loop)
    await _learn_catalog(process, answers)
    if process.stopping:
        return
    server = Server(answers, settings.http.body_bytes_max)
    listener = listener_of(server)
    # Several gateways share the port; a single one takes it alone, so that no other exchange shares it unnoticed.
    sockets = bind_sockets(settings.http.port, settings.http.host, reuse_port=settings.http.gateways > 1)
    listener.add_sockets(sockets)
    process.ready()
    say(process.name, f"serves {', '.join(map(_address, sockets))}")
    await stop.wait()
    listener.stop()
    server.stopping = True
    await server.drained(settings.http.timeout_ms / 1000 + STOP_SECONDS)
    await listener.close_all_connections()
    heart.cancel()


async def _beat(process):
    while True:
        process.beat()
        await asyncio.sleep(HEARTBEAT_SECONDS)


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
    bridge = Bridge(process, options.index, settings.http.timeout_ms)
    bridge.take_over()
    answers = Answers(bridge, Catalog(settings.limits), partial(fatal, process.data, name), settings.http.pretty)
    try:
        asyncio.run(serve(process, bridge, answers, settings))
    except OSError as problem:
        advice = ": stop what serves it, or choose another with --http HOST:PORT" \
            if problem.errno == errno.EADDRINUSE else ""
        address = f"{settings.http.host}:{settings.http.port}"
        fatal(process.data, name, f"cannot listen on {address}: {problem.strerror}{advice}")
        sys.exit(1)


if __name__ == "__main__":
    main()
