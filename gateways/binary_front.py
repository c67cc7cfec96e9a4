"""The binary connections of a gateway: as HTTP's, but for what is said on them: docs/binary-port.md."""
from functools import partial

import numpy as np

from gateways.binary_protocol import NO_RESULT, ORDER_REPLY, GatewayField, welcome
from gateways.connection import IS_GONE
from gateways.front import ARENA_BYTES, PIECES_MAX, Front
from gateways.intake import ANSWERED, ENDED, FAILED, REFUSED, make_intake
from gateways.lane import RECORD_ANSWER
from gateways.messages import unsigned
from gateways.protocol import SERVICE_TIMEOUT, SERVICE_UNAVAILABLE
from gateways.sockets import CONNECTED, RECORDS
from gateways.turns import NEVER


class BinaryFront(Front):
    def __init__(self, bridge, answers, catalog, settings, instance):
        """`answers`: an Answers; `settings`: the configuration's [binary]; `instance`: the exchange's id, 16 bytes."""
        self._welcome = partial(welcome, instance, settings.in_flight_max, settings.timeout_ms)
        intake = make_intake(ARENA_BYTES, PIECES_MAX, self._welcome())
        self._said = memoryview(intake.said.view(np.uint8))
        super().__init__(bridge, answers, catalog, settings, intake, first_marks=CONNECTED | RECORDS)

    def _refuse(self, connection):
        self._send(connection, self._welcome(
            code=SERVICE_UNAVAILABLE.code, field=GatewayField.CONNECTIONS,
            bound=self._settings.connections_max).tobytes())

    def _see_piece(self, connection, outcome, rest, body_begin, body_end, begun_ns):
        """Send the answers that the gateway gives by itself, then see to the rest."""
        if outcome not in (ENDED, FAILED) and body_end > body_begin:
            self._send(connection, bytes(self._said[body_begin:body_end]))
            if connection.held & IS_GONE:
                return
        if outcome == REFUSED:
            self._hang_up(connection)
        elif outcome != ANSWERED:
            self._leave(connection, outcome, rest, begun_ns)

    def set_head(self, head):
        return NEVER           # records have none

    def give_up(self, file, request_id, shape, timeout):
        self.sockets.in_flight[file] -= 1
        reply = np.zeros(1, ORDER_REPLY)
        reply["request_id"], reply["kind"], reply["code"] = \
            unsigned(request_id), shape - RECORD_ANSWER, SERVICE_TIMEOUT.code
        reply["result"], reply["bound"] = NO_RESULT, self._settings.timeout_ms
        self.answer(file, reply.tobytes())
