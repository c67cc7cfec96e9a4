"""The pages of a gateway, for people and machines that look at it: GET and HEAD on paths of their own."""
import json

from tornado.web import Application, RequestHandler

METHODS = ("GET", "HEAD")


class Pages:
    """`application` answers; whether a path is a page's, `in` says."""

    def __init__(self, bridge):
        self.application = Application([("/health", Health, {"bridge": bridge})])
        self._paths = {"/health"}

    def __contains__(self, path):
        return path in self._paths


class Health(RequestHandler):
    """Whether this gateway can do its work: 200, or 503 with what is missing. For load balancers."""

    def initialize(self, bridge):
        self._bridge = bridge

    def get(self):
        missing = [words for is_missing, words in (
            (not self._bridge.is_open(), "no matcher"),
            (not self._bridge.takes_writes(), "the journal takes no writes"),
        ) if is_missing]
        self.set_status(503 if missing else 200)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"status": "failing" if missing else "ok", "missing": missing}))

    head = get
