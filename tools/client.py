"""A client of the exchange over HTTP.

    with Client("http://127.0.0.1:8080") as client:
        order = client.order_put_limit(1, "BTCUSDT", Side.ASK, Decimal("0.5"), 8000, Decimal("0.002"), 0, "me")
"""
import http.client
import json
import select
from urllib.parse import urlsplit

from tools.api import Api, CallRefused
from tools.report import Failed

ANSWER_SECONDS = 10.0          # of silence; the exchange itself gives up much earlier
_UNREAD = {                    # HTTP status of an empty answer: why the call was not executed
    400: "the exchange reads no request in it, such as with integers beyond 64 bits or half a surrogate pair in a text",
    500: "its matcher does not run now",
}


class NoAnswer(Failed):
    """A call has no answer, or none of an exchange. `may_be_executed`: it may have been executed, or may be yet; else
    it certainly was not."""

    def __init__(self, text, may_be_executed):
        super().__init__(text)
        self.may_be_executed = may_be_executed


def parse_url(text):
    """(host, port, path) of an http:// URL; raises Failed."""
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port or 80
    except ValueError:
        host = None
    if not host or url.scheme != "http":
        raise Failed(f"{text} is no address of an exchange: it must be like http://127.0.0.1:8080")
    return host, port, url.path or "/"


class Client(Api):
    """One kept connection, made when it is needed, one request at a time: for one thread at a time, without locks.

    Raises NoAnswer where there is none. Nothing is ever sent twice: who calls again after an error looks at its
    `may_be_executed` first. A connection that the exchange has closed meanwhile is replaced before a request is sent.
    """

    def __init__(self, url, answer_seconds=ANSWER_SECONDS):
        self.url = url
        self._host, self._port, self._path = parse_url(url)
        self._answer_seconds = answer_seconds
        self._connection = None

    def __enter__(self):
        return self

    def __exit__(self, *_problem):
        self.close()

    def close(self):
        """Hang up; the next call connects anew."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(self, method, *params):
        body = json.dumps({"id": 1, "method": method, "params": params}).encode()
        return result_of(self.url, method, *self._ask(method, body, "POST", self._path, {}))

    def send(self, body, verb="POST", path=None, headers=()):
        """(status, body) of the answer to any request; status 0 where there is none."""
        try:
            return self._ask("the request", body, verb, path or self._path, dict(headers))
        except NoAnswer:
            return 0, b""

    def _ask(self, what, body, verb, path, headers):
        """(status, body) of the answer; raises NoAnswer."""
        is_sent, status = False, 0
        try:
            self._connect()
            is_sent = True         # in part, as far as anybody knows
            self._connection.request(verb, path, body, headers)
            answer = self._connection.getresponse()
            answered = answer.read()
            status = answer.status
            return status, answered
        except (OSError, http.client.HTTPException) as problem:
            reason = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
            remedy = "it may be executed nevertheless" if is_sent else "see that an exchange serves there"
            raise NoAnswer(f"{self.url} does not answer {what}: {reason}; {remedy}", is_sent) from None
        finally:
            if status in (0, 400):  # the server hangs up after 400, whether it says so or not
                self.close()

    def _connect(self):
        """Have a connection that the server has not closed, as far as can be seen."""
        if self._connection is not None and not _is_quiet(self._connection.sock):
            self.close()
        if self._connection is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._answer_seconds)
            connection.connect()
            self._connection = connection


def _is_quiet(sock):
    """Whether nothing is to be read: between two requests, that is the end of the connection."""
    if sock is None:               # closed after an answer that said so
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def result_of(url, method, status, body):
    """The result in an answer to a call; raises CallRefused for an error and NoAnswer where it is no answer."""
    if not body and status in _UNREAD:
        raise NoAnswer(f"{url} answers {method} with HTTP status {status}: {_UNREAD[status]}", may_be_executed=False)
    try:
        document = json.loads(body)
        error, result = document["error"], document["result"]
        if error is not None:
            raise CallRefused(error["code"], error["message"], error.get("data"))
    except (ValueError, TypeError, KeyError):
        raise NoAnswer(f"{url} answers {method} with HTTP status {status} and {body[:80]!r}, which is no answer of an"
                       " exchange", may_be_executed=True) from None
    return result
