"""From a request's body to the answer: the whole way of a call, whatever carries it."""
import asyncio
import traceback
from typing import NamedTuple

from gateways import protocol
from gateways.arguments import InvalidArgument, UnknownName
from gateways.bridge import MatcherGone, ServiceTimeout, ServiceUnavailable
from gateways.envelope import (
    MalformedRequest,
    decode_request,
    decode_requests,
    encode_batch,
    encode_error,
    encode_result,
)
from gateways.messages import Reply
from gateways.protocol import HTTP_STATUS, Refused


class Answer(NamedTuple):
    status: int
    body: bytes
    close: bool = False        # the connection, once this is written


_ERRORS = (
    (InvalidArgument, protocol.INVALID_ARGUMENT),
    (ServiceUnavailable, protocol.SERVICE_UNAVAILABLE),
    (ServiceTimeout, protocol.SERVICE_TIMEOUT),
)
NO_REQUEST = Answer(400, b"", close=True)
NO_MATCHER = Answer(500, b"")


class Answers:
    def __init__(self, bridge, catalog, report, pretty=False, batch_max=0):
        """`bridge.call(command, correlation_id)` gives the reply message; `report(text)` takes what should not happen;
        `pretty`: indented answers; `batch_max`: requests that one body may have as an array, 0: none."""
        self._bridge, self._catalog, self._report = bridge, catalog, report
        self._pretty, self._batch_max = pretty, batch_max
        self._fetch = None       # of the catalog: the task that runs, or ran last
        self._next_fetch = None  # the task that has not asked the matcher yet

    def no_request(self):
        """The Answer to what is no POST with a body."""
        return NO_REQUEST

    def too_large(self, body_bytes, body_bytes_max):
        """The Answer to a body that nobody reads."""
        refusal = InvalidArgument("body", body_bytes, f"must have at most {body_bytes_max} bytes", body_bytes_max)
        return Answer(413, encode_error(None, *protocol.INVALID_ARGUMENT, refusal.data), close=True)

    def too_many_connections(self, connections_max):
        """The Answer to a client that connects beyond the limit."""
        data = {"reason": "too many connections to this gateway", "limit": {"http.connections_max": connections_max}}
        return Answer(503, encode_error(None, *protocol.SERVICE_UNAVAILABLE, data), close=True)

    async def answer(self, body):
        """The Answer to a body that is a request, or a batch of them; the answers of a batch stand in its order."""
        try:
            requests, is_batch = decode_requests(body, self._batch_max)
        except MalformedRequest:
            return NO_REQUEST
        if not is_batch:
            return await self._answer_one(requests[0])
        answers = await asyncio.gather(*map(self._answer_one, requests))
        if NO_MATCHER in answers:
            return NO_MATCHER
        return Answer(200, encode_batch([answer.body for answer in answers], self._pretty))

    async def _answer_one(self, request):
        try:
            return self._success(request.id, await self._result(request))
        except MatcherGone:
            return NO_MATCHER
        except Exception as problem:
            return self._failure(request, problem)

    def decide(self, body, message):
        """The Answer to a request whose command has been carried out or refused; `message`: the matcher's reply."""
        request = decode_request(body)
        method = protocol.find_method(request.method)
        try:
            return self._success(request.id, protocol.encode(method, request.params, Reply(message), self._catalog))
        except Exception as problem:
            return self._failure(request, problem)

    def too_late(self, request_id, timeout):
        """The Answer to a request that was written and has no reply in time; `timeout`: a ServiceTimeout."""
        return self._refusal(request_id, protocol.SERVICE_TIMEOUT, timeout.data)

    def _success(self, request_id, result):
        return Answer(200, encode_result(request_id, result, self._pretty))

    def _failure(self, request, problem):
        if isinstance(problem, Refused):
            return self._refusal(request.id, problem.error, problem.data)
        for kind, error in _ERRORS:
            if isinstance(problem, kind):
                return self._refusal(request.id, error, problem.data)
        words = "".join(traceback.format_exception(problem))
        self._report(f"{request.method} failed: {words}")  # one request's defect must not end the others
        return self._refusal(request.id, protocol.INTERNAL_ERROR,
                             {"reason": "the gateway failed; it may have been executed"})

    def _refusal(self, request_id, error, data):
        status = HTTP_STATUS.get(error, 200)
        return Answer(status, encode_error(request_id, *error, data, self._pretty and status == 200))

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
            try:
                await self.refresh_catalog()
            except (MatcherGone, ServiceUnavailable):  # it has been carried out: who asked must not take it as undone
                raise ServiceTimeout(self._bridge.timeout_ms) from None
        return protocol.encode(method, request.params, reply, self._catalog)

    async def try_to_learn(self):
        """Fetch the catalog; returns whether the matcher told it."""
        try:
            await self.refresh_catalog()
        except (MatcherGone, ServiceTimeout, ServiceUnavailable):
            return False
        return True

    @property
    def is_learning(self):
        """Whether the catalog is being fetched."""
        return self._next_fetch is not None or (self._fetch is not None and not self._fetch.done())

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
