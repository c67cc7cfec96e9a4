"""From a request's body to the answer: the whole way of a call, whatever carries it."""
import asyncio
import traceback
from typing import NamedTuple

from gateways import protocol
from gateways.arguments import InvalidArgument, UnknownName
from gateways.bridge import MatcherGone, ServiceTimeout, ServiceUnavailable
from gateways.envelope import MalformedRequest, decode_request, encode_error, encode_result
from gateways.messages import Reply
from gateways.protocol import HTTP_STATUS, Refused


class Answer(NamedTuple):
    status: int
    body: bytes
    close: bool = False        # the connection, once this is written


NO_REQUEST = Answer(400, b"", close=True)
NO_MATCHER = Answer(500, b"")


class Answers:
    def __init__(self, bridge, catalog, report, pretty=False):
        """`bridge.call(command, correlation_id)` gives the reply message; `report(text)` takes what should not happen;
        `pretty`: indented answers."""
        self._bridge, self._catalog, self._report, self._pretty = bridge, catalog, report, pretty
        self._fetch = None       # of the catalog: the task that runs, or ran last
        self._next_fetch = None  # the task that has not asked the matcher yet

    def no_request(self):
        """The Answer to what is no POST with a body."""
        return NO_REQUEST

    def too_large(self, body_bytes, body_bytes_max):
        """The Answer to a body that nobody reads."""
        refusal = InvalidArgument("body", body_bytes, f"must have at most {body_bytes_max} bytes", body_bytes_max)
        return Answer(413, encode_error(None, *protocol.INVALID_ARGUMENT, refusal.data), close=True)

    async def answer(self, body):
        """The Answer to a request with this body."""
        try:
            request = decode_request(body)
        except MalformedRequest:
            return NO_REQUEST
        try:
            return Answer(200, encode_result(request.id, await self._result(request), self._pretty))
        except MatcherGone:
            return NO_MATCHER
        except InvalidArgument as refusal:
            error, data = protocol.INVALID_ARGUMENT, refusal.data
        except Refused as refusal:
            error, data = refusal.error, refusal.data
        except ServiceUnavailable as refusal:
            error, data = protocol.SERVICE_UNAVAILABLE, refusal.data
        except ServiceTimeout as refusal:
            error, data = protocol.SERVICE_TIMEOUT, refusal.data
        except Exception:      # one request's defect must not end the others
            self._report(f"{request.method} failed: {traceback.format_exc()}")
            error, data = protocol.INTERNAL_ERROR, {"reason": "the gateway failed; it may have been executed"}
        status = HTTP_STATUS.get(error, 200)
        return Answer(status, encode_error(request.id, *error, data, self._pretty and status == 200))

    async def _result(self, request):
        method = protocol.find_method(request.method)
        if method.is_write:
            self._bridge.check_writable()  # before any parameter
        try:
            command = method.decode(request.params, self._catalog)
        except UnknownName:
            await self.refresh_catalog()
            command = method.decode(request.params, self._catalog)
        reply = Reply(await self._bridge.call(command, request.id))
        if reply.header.catalog_version != self._catalog.version:
            await self.refresh_catalog()
        return protocol.encode(method, request.params, reply, self._catalog)

    async def try_to_learn(self):
        """Fetch the catalog; returns whether the matcher told it."""
        try:
            await self.refresh_catalog()
        except (MatcherGone, ServiceTimeout, ServiceUnavailable):
            return False
        return True

    async def refresh_catalog(self):
        """Make the catalog at least as new as this call is. Calls at the same time share one fetch, and its failure."""
        if self._next_fetch is None:
            self._next_fetch = asyncio.ensure_future(self._fetch_after(self._fetch))
        await self._next_fetch

    async def _fetch_after(self, running):
        if running is not None and not running.done():
            await asyncio.wait([running])
        self._fetch, self._next_fetch = self._next_fetch, None
        while True:
            assets, markets = await asyncio.gather(
                self._bridge.call(self._catalog.list_assets()), self._bridge.call(self._catalog.list_markets()))
            if self._catalog.update(Reply(assets), Reply(markets)):
                return             # else something was added between the two
