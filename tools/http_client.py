"""A client of the exchange's HTTP interface: one kept connection, one request at a time."""
import http.client
import json
from urllib.parse import urlsplit

from tools.report import Failed

ANSWER_SECONDS = 10.0


class CallRefused(Exception):
    """The exchange answered with an error."""

    def __init__(self, code, message, data=None):
        super().__init__(f"code {code}, {message}" + (f": {json.dumps(data, ensure_ascii=False)}" if data else ""))
        self.code, self.message, self.data = code, message, data


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


class Client:
    def __init__(self, url):
        self.url = url
        self._host, self._port, self._path = parse_url(url)
        self._connection = None

    def send(self, body, verb="POST", path=None, headers=()):
        """(status, body) of the answer; status 0 where the connection ended without one."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_SECONDS)
        try:
            self._connection.request(verb, path or self._path, body, dict(headers))
            answer = self._connection.getresponse()
            answered = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return 0, b""
        if answer.status == 400:  # then the server hangs up, whether it says so or not
            self.close()
        return answer.status, answered

    def call(self, method, *params):
        """The result of a call; raises CallRefused for an error and Failed where there is no answer."""
        status, body = self.send(json.dumps({"id": 1, "method": method, "params": params}).encode())
        return result_of(self.url, method, status, body)

    def close(self):
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def result_of(url, method, status, body):
    """The result in an answer to a call; raises CallRefused for an error and Failed where it is no answer."""
    if status == 0:
        raise Failed(f"{url} does not answer {method}: see that an exchange serves there (--url URL names another)")
    try:
        document = json.loads(body)
        error, result = document["error"], document["result"]
    except (ValueError, TypeError, KeyError):
        raise Failed(f"{url} answers {method} with HTTP status {status} and {body[:80]!r}, which is no answer of an"
                     " exchange") from None
    if error is not None:
        raise CallRefused(error["code"], error["message"], error.get("data"))
    return result
