"""The HTTP connections of a gateway.

A message that compiled code does not take goes the plain way: its body to answers.py, or the whole connection, for
good, to Tornado's server.
"""
import numpy as np

from gateways.connection import IS_GONE, PLAIN_RUNS
from gateways.front import ARENA_BYTES, PIECES_MAX, Front
from gateways.http_message import Clock, encode_answer, encode_head
from gateways.intake import ODD, PLAIN, make_intake


class HttpFront(Front):
    def __init__(self, bridge, answers, plain_server, catalog, settings):
        """`settings`: the configuration's [http]."""
        self._plain_server, self.is_plain = plain_server, settings.pretty
        self._clock, self._head_date = Clock(), ""
        super().__init__(bridge, answers, catalog, settings, make_intake(ARENA_BYTES, PIECES_MAX),
                         settings.body_bytes_max)

    def _is_crowded(self):
        return len(self._connections) + self._plain_server.connections > self._settings.connections_max

    def _refuse(self, connection):
        self._write(connection, self._answers.too_many_connections(self._settings.connections_max))

    def _see_piece(self, connection, outcome, rest, body_begin, body_end, begun_ns):
        if outcome == PLAIN:
            connection.kept = bytes(rest)
            self._hold(connection, PLAIN_RUNS)
            self._start(self._answer_plainly(connection, bytes(self._arena[body_begin:body_end])))
        elif outcome == ODD:
            self._hand_over(connection, bytes(rest))
        else:
            self._leave(connection, outcome, rest, begun_ns)

    async def _answer_plainly(self, connection, body):
        self._write(connection, await self._answers.answer(body))
        self._release(connection, PLAIN_RUNS)

    def _hand_over(self, connection, received):
        """Give the connection and what it has sent to the plain server. All its answers are written by now."""
        connected, connection.socket = connection.socket, None
        connection.held |= IS_GONE
        self._epoll.unregister(connection.file)
        del self._connections[connection.file]
        self._plain_server.serve(connected, received)

    def _write(self, connection, answer):
        close = answer.close or self._is_stopping
        self._send(connection, encode_answer(answer, self._clock.now(), close))
        if close:
            self._hang_up(connection)

    def set_head(self, head):
        """Bring the head of compiled answers up to date; until when it is, CLOCK_REALTIME in ns."""
        date = self._clock.now()
        if date is not self._head_date:
            self._head_date = date
            head[:] = np.frombuffer(encode_head(date), np.uint8)
        return self._clock.until_ns

    def decide(self, file, message, request):
        self.answer(file, encode_answer(self._answers.decide(request, message), self._clock.now(), False))

    def give_up(self, file, request_id, shape, timeout):
        self.sockets.in_flight[file] -= 1
        self.answer(file, encode_answer(self._answers.too_late(request_id, timeout), self._clock.now(), False))
