"""The gateways' kernels, with the types they are called with: see shm/kernel_compiler.py."""
import numpy as np

from gateways import facts, fast_answer, fast_request, intake, lane, sockets, turns
from shm import gateway_rings, segments
from shm.clock import make_scratch
from shm.configuration import Limits, reply_slots_needed


def kernels():
    """Groups of (function, arguments of the types it is called with): what takes longest first."""
    memory = segments.sample()
    number, limits = 0, Limits(assets_max=1, markets_max=1)
    command_words, reply_words, sleepers = memory.commands.words, memory.replies.words, memory.sleepers.words
    road, known = lane.make_lane(memory, 0), facts.make_facts(limits)
    open_files, taken = sockets.make_sockets(1, number), intake.make_intake(1, 1)
    outbox = fast_answer.make_outbox(reply_slots_needed(limits))
    turn = [
        (fast_request.take, (road, open_files, taken, known, number, number, number, False, number, number)),
        (fast_answer.drain, (road, open_files, outbox, known, number)),
        (turns.serve, (road, open_files, taken, outbox, known, sleepers, memory.counters.words, turns.make_turn(),
                       make_scratch(), number, number, False)),
    ]
    small = [
        (fast_request.receive, (open_files, taken, number, number, number, number)),
        (lane.append_call, (road, np.frombuffer(bytes(8), np.uint64), number, number)),
        (facts.hash_of, (known.markets["name"][0], number, number)),
        (gateway_rings.is_answered, (command_words, number)),
        (gateway_rings.command_head, (command_words, number)),
        (gateway_rings.publish_commands, (command_words, number, number, sleepers, number)),
        (gateway_rings.want_room, (command_words, number, number)),
        (gateway_rings.reply_tail, (reply_words, number)),
        (gateway_rings.release_replies, (reply_words, number, number)),
    ]
    return [turn, *([kernel] for kernel in small)]
