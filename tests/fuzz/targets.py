"""What is fuzzed, and what must hold of it for any bytes. A target returns, or asserts."""
import itertools
import json
import random
from types import SimpleNamespace

import numpy as np

from gateways import fast_request
from gateways.arguments import InvalidArgument
from gateways.catalog import Asset, Catalog, Market
from gateways.envelope import MalformedRequest, decode_request, decode_requests, encode_error, encode_result
from gateways.facts import learn
from gateways.intake import ODD, PLAIN, REQUEST_ID, TAKEN, UNFINISHED, make_intake
from gateways.lane import BODY_BYTES_MAX
from gateways.protocol import INVALID_ARGUMENT, Refused, find_method
from gateways.sockets import make_sockets
from shm.configuration import Limits
from shm.kernel import kernel
from shm.records import ASSET_NAME_BYTES_MAX, COMMAND, MARKET_NAME_BYTES_MAX
from tests.plain_messages import check_reading
from tests.test_fast_path import ASSETS, HEAD, MARKETS, document, mutated, stream
from tests.test_fast_path import call as random_call

STREAM_BYTES_MAX = 4096
SEEDS = 300                    # of each target
BATCH_MAX = 3


def _catalog():
    """The names that the tests' requests use and some odd ones, with precisions from none to the most."""
    catalog = Catalog(Limits(assets_max=32, markets_max=32))
    decimals = itertools.cycle([(8, 8, 4), (0, 0, 0), (18, 0, 2), (0, 18, 2), (0, 2, 18)])
    catalog.assets = [Asset((20, shown, len(name.encode()), name.encode(), b"")) for name, (shown, _, _) in zip(
        (*ASSETS, "ÄÖ", "A" * ASSET_NAME_BYTES_MAX), decimals)]
    catalog.markets = [
        Market((1, 0, 1, stock, money, fee, stock, len(name.encode()), name.encode(), b""), catalog.assets)
        for name, (stock, money, fee) in zip((*MARKETS, 'M"', "ÄÖ", "M" * MARKET_NAME_BYTES_MAX), decimals)]
    catalog.asset_ids = {asset.name: index for index, asset in enumerate(catalog.assets)}
    catalog.market_ids = {market.name: index for index, market in enumerate(catalog.markets)}
    learn(catalog.facts, catalog)
    return catalog


CATALOG = _catalog()
FACTS = CATALOG.facts._replace(assets=CATALOG.facts.assets.view(np.recarray),
                               markets=CATALOG.facts.markets.view(np.recarray))
_MADE = make_intake(1, 1)
# Numbers of Python are what atheris can see being compared.
INTAKE = _MADE._replace(arena=bytearray(STREAM_BYTES_MAX), command=_MADE.command.view(np.recarray))
PIECE = INTAKE.pieces.view(np.recarray)[0]
SOCKETS = make_sockets(1, -1)


# Parts of kernels are called by kernels alone, even where neither is compiled: these are their entries.

@kernel
def read_body(size):
    """Make the command of the body that the arena begins with: the slots of its largest reply, or 0."""
    return fast_request.command_of(INTAKE, FACTS, 0, size)


@kernel
def read_piece():
    """Read the next message of the one piece, whatever it says: what became of it."""
    return fast_request.take_piece(None, SOCKETS, INTAKE, FACTS, PIECE, STREAM_BYTES_MAX, 1, True, 0, 0)


def _plain_command(request):
    """The command of the plain path, or None; whatever refuses it can be told the client."""
    try:
        return find_method(request.method).decode(request.params, CATALOG)
    except InvalidArgument as problem:
        error, data = INVALID_ARGUMENT, problem.data
    except Refused as problem:
        error, data = problem.error, problem.data
    answer = json.loads(encode_error(request.id, *error, data))
    assert answer["error"]["code"] == error.code and answer["id"] == request.id
    return None


def body(data):
    """A body is the same command on both paths, or none on the fast one."""
    data = data[:BODY_BYTES_MAX]
    INTAKE.arena[:len(data)] = data
    reply_slots_max = read_body(len(data))
    try:
        request = decode_request(data)
        command = _plain_command(request)
    except MalformedRequest:
        request = command = None
    if reply_slots_max:
        assert command is not None, "taken, but the plain path refuses it"
        INTAKE.command[0]["slots"] = 1
        made, plain = INTAKE.command[0], np.frombuffer(command.slots, COMMAND)[0]
        assert made.tobytes() == plain.tobytes(), (made, plain)
        assert (reply_slots_max, INTAKE.marks[REQUEST_ID]) == (command.reply_slots_max, request.id)


def envelope(data):
    """Any bytes are requests, or no request; what they say can be said again, and each is a command or refused."""
    try:
        requests, is_batch = decode_requests(data, BATCH_MAX)
    except MalformedRequest:
        return
    assert is_batch or len(requests) == 1
    for request in requests:
        for pretty in (False, True):
            assert json.loads(encode_result(request.id, request.params, pretty))["result"] == request.params
        command = _plain_command(request)
        assert command is None or len(command.slots) % COMMAND.itemsize == 0


def _messages(data):
    """(bodies of the messages that the fast path finds in these bytes, what it says to the rest, where that begins)."""
    INTAKE.arena[:len(data)] = data
    SOCKETS.in_flight[0] = 0
    bodies, at = [], 0
    while True:
        INTAKE.pieces[0] = (0, TAKEN, at, len(data), at, 0, 0, 0)
        outcome = read_piece()
        at = int(PIECE.at)
        if outcome != PLAIN:
            return bodies, outcome, at
        bodies.append(data[PIECE.body_begin:PIECE.body_end])


def http(data):
    """A stream is read as Tornado reads it, and alike however it is cut; the first byte says where."""
    cut, data = data[:1], data[1:STREAM_BYTES_MAX]
    bodies, outcome, _ = _messages(data)
    assert outcome in (TAKEN, UNFINISHED, ODD)
    check_reading(data, bodies, outcome == UNFINISHED)
    if cut and data:
        first = ord(cut) * len(data) // 256
        before, outcome_before, kept_at = _messages(data[:first])
        if outcome_before == ODD:
            assert (before, ODD) == (bodies, outcome)
        else:
            behind, outcome_behind, _ = _messages(data[kept_at:])
            assert (before + behind, outcome_behind) == (bodies, outcome)


def seeds(target):
    """Where the search begins: requests of every shape that the tests know."""
    rng = random.Random(1)
    for number in range(SEEDS):
        if target is http:
            yield bytes([rng.randrange(256)]) + (stream(rng) if number else HEAD + b"null")
        else:
            text = document(rng, *random_call(rng))
            yield mutated(rng, text) if number % 3 == 2 else text


TARGETS = SimpleNamespace(body=body, envelope=envelope, http=http)
