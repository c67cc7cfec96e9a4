"""Calls of the API on a core in this process: the wire's own decoding and encoding, without HTTP and without rings.

Importing it imports compiled kernels: choose their cache before (`kernel_cache`).
"""
from decimal import Decimal

import numpy as np

from gateways import protocol
from gateways.arguments import InvalidArgument
from gateways.catalog import Catalog
from gateways.messages import Reply
from pipeline.replica import Replica
from shm.records import COMMAND, EventKind, Side
from tools.api import Api, CallRefused
from tools.trader import Made

CALL_NS = 1_000                # of the core's time from one call to the next


class CoreCalls(Api):
    def __init__(self, settings):
        """A new core with the configuration's assets, markets and limits."""
        self._replica = Replica.configured(settings)
        self._catalog = Catalog(settings.limits)
        self._time_ns = 0
        self.count = 0
        assert self._catalog.update(
            Reply(self._apply(self._catalog.list_assets())), Reply(self._apply(self._catalog.list_markets())))
        self._events = self._replica.drain_events()

    def _apply(self, command):
        record = np.frombuffer(command.slots, COMMAND, 1)[0]
        self._time_ns += CALL_NS
        self._replica.apply(record, command.slots[COMMAND.itemsize:][:record["payload_bytes"]], self._time_ns)
        return self._replica.reply_message()

    def call(self, name, *params):
        """The result, as the HTTP interface would give it; raises CallRefused."""
        self.count += 1
        try:
            method = protocol.find_method(name)
            message = self._apply(method.decode(params, self._catalog))
            self._events = self._replica.drain_events()
            return protocol.encode(method, params, Reply(message), self._catalog)
        except InvalidArgument as refusal:
            raise CallRefused(*protocol.INVALID_ARGUMENT, refusal.data) from None
        except protocol.Refused as refusal:
            raise CallRefused(*refusal.error, refusal.data) from None

    def find_trades(self, trader, order):
        """The trades of the order that the last call put, from the core's events."""
        market, is_ask = trader.market, order.side == Side.ASK
        return [Made(int(event["bid_order_id" if is_ask else "ask_order_id"]),
                     Decimal(int(event["price"])).scaleb(-market.money_prec),
                     Decimal(int(event["amount"])).scaleb(-market.stock_prec))
                for event in self._events if event["kind"] == EventKind.DEAL]
