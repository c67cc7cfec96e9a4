"""The connections of a gateway: bytes in, commands into the rings; replies out, bytes back.

In each turn (turns.py) compiled code reads what has come, takes what it understands of it, and sends the answers; what
it leaves is seen to here and by the protocol's own front. A connection's answers keep the order of its requests:
nothing of it is taken while something before it goes another way.
"""
import asyncio
import errno
import select
import socket
import time

from gateways.bridge import ROOM_WAIT_SECONDS
from gateways.connection import (
    HAS_KEPT,
    HAS_UNSENT,
    IS_CLOSING,
    IS_ENDED,
    IS_GONE,
    WAITS_FOR_ANSWER,
    WAITS_FOR_ROOM,
    Connection,
)
from gateways.intake import ENDED, FAILED, NO_ROOM, TAKEN, UNFINISHED
from gateways.sockets import BLOCKED, CONNECTED, HELD, TELL

ARENA_BYTES = 2**22
PIECES_MAX = 1024              # of one turn
KEPT_BYTES_MAX = ARENA_BYTES // 2  # of one turn: the rest is for what has come
ROOM_WAIT_NS = int(ROOM_WAIT_SECONDS * 1e9)
UNSENT_BYTES_MAX = 2**27       # of all connections; beyond, a client that does not take its answers is cut off
ROOM_RETRIES_MAX = 64          # connections that look for room again in one turn; those that are late beside
LAST_WORD_SECONDS = 1.0        # after the last answer, what still comes is read away: a reset could overtake it
LAST_READ_BYTES = 65_536
ACCEPTS_MAX = 128              # of one tick of the event loop
NO_MORE_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ACCEPT_PAUSE_SECONDS = 0.1     # without files for more connections
PAUSE_TOLD_NS = 60 * 10**9     # it is told so often at most
STOP_LOOK_SECONDS = 0.005


class Front:
    """What all fronts do, whatever is said on their connections. Each says what differs: `_see_piece`, `_refuse`,
    `set_head`, `give_up`, and `decide` where compiled code leaves replies to it.

    `bridge` gives it its turns and its answers, see NoFront there.
    """
    is_plain = False           # whether every request goes the plain way

    def __init__(self, bridge, answers, catalog, settings, intake, body_bytes_max=0, first_marks=CONNECTED):
        """`settings`: its section of the configuration; `body_bytes_max`: of a request of HTTP; `first_marks`: of each
        connection, for compiled code."""
        self._bridge, self._answers = bridge, answers
        self._catalog, self._settings, self._first_marks = catalog, settings, first_marks
        self._loop = asyncio.get_running_loop()
        self.sockets, self._epoll = bridge.sockets, bridge.epoll
        self.intake = intake
        self._arena = memoryview(self.intake.arena)
        self._connections = {}  # file: Connection
        self._with_kept = []   # connections whose kept bytes are to be taken in the next turn
        self._waiting = []     # connections that wait for room
        self._retaken = []     # connections whose kept bytes are pieces of this turn
        self._begun_ns = {}    # connection: since when it sends the message that its piece of this turn begins with
        self._turn_ns = 0      # when this turn began, or one shortly before
        self._unsent_bytes = 0
        self._tasks = set()
        self._listeners = []
        self._pause_told_ns = -PAUSE_TOLD_NS
        self._is_stopping = False
        bridge.join(self, body_bytes_max, settings.in_flight_max)

    # Connections.

    def listen(self, listener):
        """Accept whoever connects to this socket, a non-blocking one."""
        self._listeners.append(listener)
        self._loop.add_reader(listener, self._accept_some, listener)

    def _accept_some(self, listener):
        """Take those who have connected; where there is no file for one more, look again a little later."""
        for _ in range(ACCEPTS_MAX):
            try:
                connected, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as problem:  # else that client is gone
                if problem.errno in NO_MORE_FILES:
                    self._pause_accepting(listener, problem)
                    return
            else:
                self._accept(connected)

    def _pause_accepting(self, listener, problem):
        self._loop.remove_reader(listener)
        self._loop.call_later(ACCEPT_PAUSE_SECONDS, self._go_on_accepting, listener)
        now_ns = time.monotonic_ns()
        if now_ns - self._pause_told_ns >= PAUSE_TOLD_NS:
            self._pause_told_ns = now_ns
            self._bridge.say(f"accepts no more clients for now: {problem.strerror}, with {len(self._connections)}"
                             f" connections; those wait (ulimit -n, LimitNOFILE, fs.file-max)")

    def _go_on_accepting(self, listener):
        if not self._is_stopping:
            self._loop.add_reader(listener, self._accept_some, listener)

    def _accept(self, connected):
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(connected)
        if connection.file >= len(self.sockets.marks):
            connected.close()  # cannot be: the system would have to give more files than its limit
            return
        self._connections[connection.file] = connection
        self.sockets.marks[connection.file] = self._first_marks
        self.sockets.heard_ns[connection.file] = time.monotonic_ns()
        self._epoll.register(connection.file, select.EPOLLIN)
        if self._is_crowded():
            self._refuse(connection)
            if not connection.held & IS_GONE:
                self._read_away(connection)  # what it has asked: else the close would be a reset
            self._close(connection)

    def _is_crowded(self):
        return len(self._connections) > self._settings.connections_max

    def _hold(self, connection, reason):
        """Read nothing more from it for this reason."""
        if not connection.held:
            self._epoll.modify(connection.file, 0)
            self.sockets.marks[connection.file] |= HELD
        connection.held |= reason

    def _release(self, connection, reason):
        """The reason is gone: go on with what it has sent before, or read on."""
        if connection.held & IS_GONE:
            return
        connection.held &= ~reason
        if connection.kept and not connection.held & ~IS_ENDED:
            connection.held |= HAS_KEPT
            self._with_kept.append(connection)
        else:
            self._settle(connection)

    def _settle(self, connection):
        """Read it, if nothing holds it any more; hang up on it, if its client says nothing more and is answered."""
        if not connection.held:
            self.sockets.marks[connection.file] &= ~(HELD | TELL)
            self._epoll.modify(connection.file, select.EPOLLIN)
        elif connection.held == IS_ENDED and self.sockets.in_flight[connection.file] == 0:
            self._close(connection)

    def _close(self, connection):
        """Hang up. Its number stays taken while calls of it are in flight."""
        file = connection.file
        if not connection.held & IS_GONE:
            connection.held |= IS_GONE
            self._unsent_bytes -= len(connection.unsent)
            self._epoll.unregister(file)
            self._loop.remove_reader(file)
            self._loop.remove_writer(file)
            self.sockets.marks[file] = BLOCKED | HELD
            self.sockets.kept_bytes[file] = 0
        if self.sockets.in_flight[file] == 0 and self._connections.get(file) is connection:
            del self._connections[file]
            connection.socket.close()

    def sweep(self, now_ns):
        """End connections whose client has been silent or deaf for too long. To be called now and then, with the
        monotonic clock."""
        for connection in list(self._connections.values()):
            file = connection.file
            if connection.is_overdue(now_ns, int(self.sockets.heard_ns[file]), self.sockets.in_flight[file] > 0):
                self._close(connection)

    async def stop(self, seconds):
        """Accept nobody, answer what is on its way, at most so long; then hang up on everybody."""
        self._is_stopping = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        end = time.monotonic() + seconds
        while (self.sockets.in_flight.any() or self._tasks or self._with_kept or self._unsent_bytes) \
                and time.monotonic() < end:
            await asyncio.sleep(STOP_LOOK_SECONDS)
        for connection in list(self._connections.values()):
            self._close(connection)

    # Bytes in.

    @property
    def has_waiting(self):
        return bool(self._waiting)

    def begin(self, now_ns, has_room):
        """Make pieces of what was kept while something else came first, as far as the arena goes; of what waits for
        room, if there may be some. Returns (how many, the bytes that they take)."""
        self._turn_ns, self._retaken, self._begun_ns = now_ns, [], {}
        wanting, self._with_kept = self._with_kept, []
        if has_room and self._waiting:
            count = min(ROOM_RETRIES_MAX, len(self._waiting))
            while count < len(self._waiting) and self._is_late(self._waiting[count]):
                count += 1     # these are answered now, room or not
            wanting = wanting + self._waiting[:count]
            self._waiting = self._waiting[count:]
        used = 0
        for index, connection in enumerate(wanting):
            if connection.held & IS_GONE:
                continue
            size = len(connection.kept)
            if used + size > KEPT_BYTES_MAX or len(self._retaken) == PIECES_MAX // 2:
                self._with_kept = wanting[index:]
                break
            connection.held = connection.held & ~WAITS_FOR_ROOM | HAS_KEPT
            is_late = self._is_late(connection)
            self._arena[used:used + size] = connection.kept
            self.intake.pieces[len(self._retaken)] = (
                connection.file, TAKEN, used, used + size, used, 0, 0, is_late)
            connection.kept = b""
            self.sockets.kept_bytes[connection.file] = 0
            self._retaken.append(connection)
            used += size
        return len(self._retaken), used

    def _is_late(self, connection):
        """Whether it has waited for room for too long."""
        return connection.room_ns is not None and self._turn_ns - connection.room_ns > ROOM_WAIT_NS

    def continue_messages(self, begin, end):
        """Put the beginnings of messages before what has come of them now, in the pieces [begin, end)."""
        for file, outcome, at, *_ in self.intake.pieces[begin:end].tolist():
            connection = self._connections[file]
            if connection.kept and outcome == TAKEN:
                self._arena[at:at + len(connection.kept)] = connection.kept
                self._begun_ns[connection] = connection.message_ns
                connection.kept = b""
                self.sockets.kept_bytes[file] = 0

    def see_pieces(self, count, is_left):
        """See to what compiled code has left of this turn's pieces."""
        for connection in self._retaken:
            connection.held &= ~HAS_KEPT
        if is_left:
            for file, outcome, begin, end, at, body_begin, body_end, _ in self.intake.pieces[:count].tolist():
                connection = self._connections.get(file)
                if outcome != TAKEN and connection is not None:
                    begun_ns = self._begun_ns.get(connection, self._turn_ns) if at == begin else self._turn_ns
                    if at > begin:
                        connection.room_ns = None
                    self._see_piece(connection, outcome, self._arena[at:end], body_begin, body_end, begun_ns)
        for connection in self._retaken:
            if not connection.held & WAITS_FOR_ROOM:
                connection.room_ns = None
            if not connection.held & IS_GONE:
                self._settle(connection)

    def _leave(self, connection, outcome, rest, begun_ns):
        """See to what compiled code has left of a piece, its `rest`, for a reason that every protocol has."""
        if outcome in (ENDED, FAILED):
            self._end(connection, outcome)
            return
        connection.kept = bytes(rest)
        if outcome == UNFINISHED:
            connection.message_ns = begun_ns
            self.sockets.kept_bytes[connection.file] = len(rest)
        elif outcome == NO_ROOM:
            self._hold(connection, WAITS_FOR_ROOM)
            connection.room_ns = connection.room_ns or time.monotonic_ns()
            self._waiting.append(connection)
        else:
            self._hold(connection, WAITS_FOR_ANSWER)
            if self.sockets.in_flight[connection.file] == 0:  # its answers are sent in this very turn
                self._release(connection, WAITS_FOR_ANSWER)

    def _end(self, connection, outcome):
        """The client says nothing more: answer what it has asked, then hang up. If it is gone, hang up now."""
        if outcome == FAILED:
            if connection.held or is_broken(connection.socket):
                self._close(connection)
            return
        self._hold(connection, IS_ENDED)
        connection.kept = b""
        self.sockets.kept_bytes[connection.file] = 0
        self.sockets.marks[connection.file] |= TELL
        self._settle(connection)

    # What runs meanwhile.

    def _start(self, work):
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task):
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._bridge.defect("the front failed", task.exception())

    # Answers out.

    def _send(self, connection, data):
        """Send these bytes, now or when the client takes them."""
        if connection.held & IS_GONE:
            return
        sent = 0
        if not connection.unsent:
            try:
                sent = connection.socket.send(data)
            except BlockingIOError:
                pass
            except OSError:    # the client is gone
                self._close(connection)
                return
        if sent == len(data):
            self.sockets.marks[connection.file] &= ~BLOCKED
            return
        if not connection.unsent:
            connection.unsent_ns = time.monotonic_ns()
            self._hold(connection, HAS_UNSENT)
            self.sockets.marks[connection.file] |= BLOCKED
            self._loop.add_writer(connection.file, self._send_more, connection)
        connection.unsent += data[sent:]
        self._unsent_bytes += len(data) - sent
        if self._unsent_bytes > UNSENT_BYTES_MAX:
            self._close(connection)

    def _send_more(self, connection):
        """The client takes something again."""
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        connection.unsent = connection.unsent[sent:]
        connection.unsent_ns = time.monotonic_ns()
        self._unsent_bytes -= sent
        if not connection.unsent:
            self._loop.remove_writer(connection.file)
            self.sockets.marks[connection.file] &= ~BLOCKED
            if connection.held & IS_CLOSING:
                self._say_goodbye(connection)
            else:
                self._release(connection, HAS_UNSENT)

    def _hang_up(self, connection):
        """End the connection once its answers are sent."""
        if not connection.held & IS_GONE:
            self._hold(connection, IS_CLOSING)
            if not connection.unsent:
                self._say_goodbye(connection)

    def _say_goodbye(self, connection):
        """The last answer is written: hang up when the client has read it, or soon."""
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
            return
        self._loop.add_reader(connection.file, self._read_away, connection)
        self._loop.call_later(LAST_WORD_SECONDS, self._close, connection)

    def _read_away(self, connection):
        try:
            if connection.socket.recv(LAST_READ_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(connection)

    # What the bridge calls.

    def answer(self, file, data):
        connection = self._connections.get(file)
        if connection is not None:  # else it broke with several answers at once
            self._send(connection, data)
            self.told(file)

    def told(self, file):
        connection = self._connections.get(file)
        if connection is None:
            return
        if connection.held & IS_GONE:
            self._close(connection)
        elif connection.held & (WAITS_FOR_ANSWER | IS_ENDED):
            self._release(connection, WAITS_FOR_ANSWER)

    def see_version(self, catalog_version):
        if catalog_version != self._catalog.version and not self._answers.is_learning:
            self._start(self._answers.try_to_learn())


def is_broken(connected):
    """Whether nothing can come any more from a socket that had an error or nothing to read."""
    try:
        connected.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False
