"""HTTP on Tornado's server: every message that is not of the frequent shapes, and the pages for people and machines
that look at a gateway.

Any path, POST only, but for the pages; a connection's requests are answered in their order. The whole way of a call is
in answers.py: this module only carries bodies and answers.
"""
import asyncio

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
from gateways.http_message import CONTENT_TYPE, Clock

HEADER_BYTES_MAX = 80 * 1024
IDLE_SECONDS_MAX = 3600        # of a kept connection
BODY_SECONDS_MAX = 60          # for a body to come
READ_AWAY_FACTOR = 16          # times body_bytes_max of a body too large are read, so that its sender hears why
LAST_WRITE_SECONDS_MAX = 5.0   # for a client to take its last answer
LENGTH_DIGITS_MAX = 20         # of a Content-Length; Tornado hangs up on a longer one


class PlainServer(HTTPServerConnectionDelegate):
    """Carries each request's body to `answers.answer` and the Answer back; requests for a page go to the pages."""

    def __init__(self, answers, body_bytes_max, pages):
        """`pages`: a Pages."""
        self.answers, self.body_bytes_max, self.pages = answers, body_bytes_max, pages
        self.stopping = False
        self.connections = 0   # open ones
        self._tasks = set()
        self._clock = Clock()
        self._tornado = HTTPServer(
            self, max_header_size=HEADER_BYTES_MAX, max_body_size=10**LENGTH_DIGITS_MAX,
            idle_connection_timeout=IDLE_SECONDS_MAX, body_timeout=BODY_SECONDS_MAX)

    def serve(self, connected, received):
        """Take over a connected socket from which these bytes have been read."""
        self.connections += 1
        self._tornado.handle_stream(_ReceivedStream(connected, received), None)  # its address may be gone

    def on_close(self, _server_connection):
        self.connections -= 1

    def start_request(self, server_connection, connection):
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
    """A stream some of whose bytes have been received before."""

    def __init__(self, connected, received):
        super().__init__(connected)
        self._received = memoryview(received)

    def read_from_fd(self, buf):
        if not self._received:
            return super().read_from_fd(buf)
        count = min(len(buf), len(self._received))
        buf[:count] = self._received[:count]
        self._received = self._received[count:]
        return count


class _Message(HTTPMessageDelegate):
    """One request as it arrives."""

    def __init__(self, server, server_connection, connection):
        self._server, self._server_connection, self._connection = server, server_connection, connection
        self._page = None      # who answers instead
        self._is_post = self._is_answered = False
        self._chunks, self._body_bytes = [], 0

    def headers_received(self, start_line, headers):
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
        if self._body_bytes <= self._server.body_bytes_max:
            self._chunks.append(chunk)
        else:
            self._refuse_far_too_large(self._body_bytes)

    def finish(self):
        if self._page is not None:
            self._page.finish()
        elif not self._is_answered:
            self._server.start(self._answer())

    def on_connection_close(self):
        if self._page is not None:
            self._page.on_connection_close()

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
