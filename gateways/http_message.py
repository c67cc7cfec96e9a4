"""The head of an HTTP answer, as every way of answering writes it."""
import time
from email.utils import formatdate

from tornado.httputil import responses

CONTENT_TYPE = "application/json"


class Clock:
    """The text of a Date header, made once a second; `until_ns`: until when it is right, CLOCK_REALTIME."""

    def __init__(self):
        self._second, self._text, self.until_ns = 0, "", 0

    def now(self):
        second = int(time.time())
        if self._second != second:
            self._second, self._text = second, formatdate(second, usegmt=True)
            self.until_ns = (second + 1) * 10**9
        return self._text


def encode_head(date):
    """The head of the frequent answer, up to its length."""
    return f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: ".encode()


def encode_answer(answer, date, close):
    """The bytes of an HTTP answer; `close`: it is the connection's last one."""
    content_type = f"Content-Type: {CONTENT_TYPE}\r\n" if answer.body else ""
    connection = "Connection: close\r\n" if close else ""
    head = (f"HTTP/1.1 {answer.status} {responses[answer.status]}\r\nDate: {date}\r\n"
            f"Content-Length: {len(answer.body)}\r\n{content_type}{connection}\r\n")
    return head.encode() + answer.body
