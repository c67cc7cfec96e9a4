"""One connection, as far as Python has to do with it. What its bytes mean is http_front.py's or binary_front.py's."""
IDLE_NS_MAX = 3600 * 10**9     # without a byte from the client
MESSAGE_NS_MAX = 60 * 10**9    # for a message to come whole
UNSENT_NS_MAX = 60 * 10**9     # for a client to take its answers

# Why nothing is read from a connection for now: bits of `held`.
PLAIN_RUNS = 1                 # its last message goes the plain way
HAS_UNSENT = 2                 # its client does not take what is written
WAITS_FOR_ANSWER = 4
WAITS_FOR_ROOM = 8
HAS_KEPT = 16                  # what it has sent before is taken first
IS_ENDED = 32                  # its client says nothing more
IS_CLOSING = 64                # its last answer is written
IS_GONE = 128


class Connection:
    __slots__ = ("file", "held", "kept", "message_ns", "room_ns", "socket", "unsent", "unsent_ns")

    def __init__(self, connected):
        self.socket, self.file = connected, connected.fileno()
        self.held = 0
        self.kept = b""        # bytes that are not taken yet
        self.unsent = b""      # bytes that the client does not take
        self.message_ns = 0    # since when `kept` is the beginning of a message
        self.room_ns = None    # since when it waits for room in the rings
        self.unsent_ns = 0     # since when there is something unsent

    def is_overdue(self, now_ns, heard_ns, is_asking):
        """Whether its client has not done its part for too long; `heard_ns`: when it was heard last; `is_asking`: it
        waits for an answer itself."""
        if self.unsent:
            return now_ns - self.unsent_ns > UNSENT_NS_MAX
        if is_asking or self.held:
            return False
        if self.kept:
            return now_ns - self.message_ns > MESSAGE_NS_MAX
        return now_ns - heard_ns > IDLE_NS_MAX
