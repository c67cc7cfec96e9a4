"""HTTP on Tornado's server: every message that is not of the frequent shapes, and the pages for people and machines
that look at a gateway.

Any path, POST only, but for the pages; a connection's requests are answered in their order. The whole way of a call is
in answers.py: this module only carries bodies and answers.
"""
import asyncio
import time

from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    ResponseStartLine,
    responses,
)
from tornado.iostream import IOStream

from gateways import pages
from gateways.connection import MESSAGE_NS_MAX, UNSENT_NS_MAX
from gateways.http_message import CONTENT_TYPE, Clock

HEADER_BYTES_MAX = 80 * 1024
IDLE_SECONDS_MAX = 3600        # of a kept connection
BODY_SECONDS_MAX = 60          # for a body to come
UNSENT_BYTES_MAX = 2**26       # of all connections; beyond, a client that does not take its answers is cut off
RECEIVED_BYTES_MAX = 2**26     # of bodies, of all connections; beyond, who sends more of one is cut off
READ_AWAY_FACTOR = 16          # times body_bytes_max of a body too large are read, so that its sender hears why
LAST_WRITE_SECONDS_MAX = 5.0   # for a client to take its last answer
LENGTH_DIGITS_MAX = 20         # of a Content-Length; Tornado hangs up on a longer one


class PlainServer(HTTPServerConnectionDelegate):
    """Carries each request's body to `answers.answer` and the Answer back; requests for a page go to the pages."""

    def __init__(self, answers, body_bytes_max, pages):
        """`pages`: a Pages."""
        self.answers, self.body_bytes_max, self.pages = answers, body_bytes_max, pages
        self.stopping = False
        self.unsent_bytes = self.received_bytes = 0
        self._streams = set()
        self._tasks = set()
        self._clock = Clock()
        self._tornado = HTTPServer(
            self, max_header_size=HEADER_BYTES_MAX, max_body_size=10**LENGTH_DIGITS_MAX,
            idle_connection_timeout=IDLE_SECONDS_MAX, body_timeout=BODY_SECONDS_MAX)

    def serve(self, connected, received):
        """Take over a connected socket from which these bytes have been read."""
        stream = _ReceivedStream(connected, received, self)
        self._streams.add(stream)
        self._tornado.handle_stream(stream, None)  # its address may be gone

    def forget(self, stream):
        """It is closed. Tornado's server tells its delegate of no end."""
        self._streams.discard(stream)

    @property
    def connections(self):
        """How many are open."""
        return len(self._streams)

    def sweep(self, now_ns):
        """End connections whose client lets a head or its answers wait for too long: what Tornado does not see to."""
        for stream in list(self._streams):
            if stream.is_overdue(now_ns):
                stream.close()

    def start_request(self, server_connection, connection):
        server_connection.stream.await_head()
        return _Message(self, server_connection, connection)

    def start(self, work):
        """Run the coroutine; `stop` waits for it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, seconds):
        """Wait until nothing is being answered, at most so long; then hang up on everybody."""
        self.stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        await self._tornado.close_all_connections()

    async def write(self, connection, answer):
        headers = HTTPHeaders({"Date": self._clock.now(), "Content-Length": str(len(answer.body))})
        if answer.body:
            headers["Content-Type"] = CONTENT_TYPE
        close = answer.close or self.stopping
        if close:
            headers["Connection"] = "close"
        line = ResponseStartLine("HTTP/1.1", answer.status, responses[answer.status])
        written = connection.write_headers(line, headers, answer.body)  # a client that has gone is no error
        if close:              # before Tornado reads on
            await asyncio.wait({written}, timeout=LAST_WRITE_SECONDS_MAX)
            connection.close()
        else:
            connection.finish()


class _ReceivedStream(IOStream):
    """A stream some of whose bytes have been received before, and that knows how long its client has been slow."""

    def __init__(self, connected, received, server):
        super().__init__(connected)
        self._server = server
        self._received = memoryview(received)
        self._awaits_head = self._is_answering = False
        self._head_ns = None   # since when the beginning of a head has been here, and nothing else is to be done
        self._unsent_bytes = 0
        self._taken_ns = 0     # when the client took something of its answers last

    def is_overdue(self, now_ns):
        if self.writing():
            return now_ns - self._taken_ns > UNSENT_NS_MAX
        return self._awaits_head and self._head_ns is not None and now_ns - self._head_ns > MESSAGE_NS_MAX

    def await_head(self):
        """What comes, and what has come since the last message was whole, is the head of a message."""
        self._awaits_head, self._is_answering = True, False
        if self._head_ns is not None:
            self._head_ns = time.monotonic_ns()

    def has_head(self):
        self._awaits_head, self._head_ns = False, None

    def has_message(self):
        self._is_answering = True

    def close_fd(self):
        super().close_fd()
        self._count(-self._unsent_bytes)
        self._server.forget(self)

    def read_from_fd(self, buf):
        if self._received:
            count = min(len(buf), len(self._received))
            buf[:count] = self._received[:count]
            self._received = self._received[count:]
        else:
            count = super().read_from_fd(buf)
        if count and self._head_ns is None and (self._awaits_head or self._is_answering):
            self._head_ns = time.monotonic_ns()
        return count

    def write(self, data):
        if not self.writing():
            self._taken_ns = time.monotonic_ns()
        written = super().write(data)
        if not self.closed():
            self._count(len(data))
            if self._server.unsent_bytes > UNSENT_BYTES_MAX and self.writing():
                self.close()
        return written

    def write_to_fd(self, data):
        size = super().write_to_fd(data)
        if size:
            self._count(-size)
            self._taken_ns = time.monotonic_ns()
        return size

    def _count(self, unsent_bytes):
        """So many more bytes are unsent."""
        self._unsent_bytes += unsent_bytes
        self._server.unsent_bytes += unsent_bytes


class _Message(HTTPMessageDelegate):
    """One request as it arrives."""

    def __init__(self, server, server_connection, connection):
        self._server, self._server_connection, self._connection = server, server_connection, connection
        self._page = None      # who answers instead
        self._is_post = self._is_answered = False
        self._body, self._body_bytes = bytearray(), 0  # a list of chunks would take many times their bytes

    def headers_received(self, start_line, headers):
        self._server_connection.stream.has_head()
        path = start_line.path.partition("?")[0]
        if start_line.method in pages.METHODS and path in self._server.pages:
            self._page = self._server.pages.application.start_request(self._server_connection, self._connection)
            self._page.headers_received(start_line, headers)
            return
        self._is_post = start_line.method == "POST"
        announced = headers.get("Content-Length", "")
        if announced.isdecimal() and len(announced) <= LENGTH_DIGITS_MAX:
            self._refuse_far_too_large(int(announced))

    def data_received(self, chunk):
        self._body_bytes += len(chunk)
        if self._body_bytes > self._server.body_bytes_max:
            self._refuse_far_too_large(self._body_bytes)
        elif self._page is None and not self._is_answered:
            self._body += chunk
            self._server.received_bytes += len(chunk)
            if self._server.received_bytes > RECEIVED_BYTES_MAX:
                self._server_connection.stream.close()

    def finish(self):
        self._server_connection.stream.has_message()
        if self._page is not None:
            self._page.finish()
        elif not self._is_answered:
            self._server.start(self._answer())

    def on_connection_close(self):
        self._forget_body()
        if self._page is not None:
            self._page.on_connection_close()

    async def _answer(self):
        answers, body_bytes_max = self._server.answers, self._server.body_bytes_max
        if self._body_bytes > body_bytes_max:
            answer = answers.too_large(self._body_bytes, body_bytes_max)
        elif not self._is_post or not self._body_bytes:
            answer = answers.no_request()
        else:
            body = bytes(self._body)
            self._forget_body()
            answer = await answers.answer(body)
        self._forget_body()
        await self._server.write(self._connection, answer)

    def _forget_body(self):
        self._server.received_bytes -= len(self._body)
        self._body.clear()

    def _refuse_far_too_large(self, body_bytes):
        """Answer at once and hang up, without reading the rest."""
        if body_bytes > READ_AWAY_FACTOR * self._server.body_bytes_max and not self._is_answered:
            self._is_answered = True
            self._forget_body()
            answer = self._server.answers.too_large(body_bytes, self._server.body_bytes_max)
            self._server.start(self._server.write(self._connection, answer))
