"""What happens in one simulation: its settings and its actions, one after the other, all drawn from a seed.

An action holds everything that it needs, so that a part of a plan is a plan: that is how a story is made shorter. One
that finds nothing to do, as a kill of what does not run, does nothing.
"""
import random
from dataclasses import dataclass

from shm.int128 import halves
from shm.records import ALL_ASSETS, Kind, Side
from tools.simulation.agents import GATEWAYS, RUN, Operation
from tools.simulation.disk import BROKEN, NO_SPACE
from tools.simulation.world import MAKER, Settings

ACTIONS = 150
USERS = (1, 2, 3)
STEPS = (1, 2, 3, 5, 8, 13, 30, 80, 200)
WEIGHTS = {"gateway": 6, "matcher": 5, "journaler": 6, MAKER: 2, "history": 2, "snapshotter": 2}
FAULTS = {"kill": 10, "power": 3, "reboot": 2, "disk": 3, "clock": 2, "flip": 4, "rot": 2, "second": 1}
FAULT_SHARE = 0.08             # of the actions
SEND_SHARE = 0.16


@dataclass(frozen=True)
class Run:
    name: str
    steps: int

    def apply(self, world):
        before = world.at(self.name)
        if before is not None:
            world.tell(f"{self.name} runs {self.steps} steps, from {before}")
            world.run(self.name, self.steps)
        world.clock.advance(2_000_000)


@dataclass(frozen=True)
class Send:
    """Clients of gateway `row` want something."""
    row: int
    wanted: tuple              # (number, fields as pairs, payload)

    def apply(self, world):
        for number, fields, payload in self.wanted:
            operation = world.operations[number] = Operation(number, dict(fields), payload)
            world.clients[self.row].waiting.append(operation)
            world.tell(f"a client of gateway {self.row} sends {operation}")


@dataclass(frozen=True)
class Kill:
    name: str

    def apply(self, world):
        at = world.at(self.name)
        if at is not None:
            world.injected["kill"] += 1
            world.injected[f"kill of {self.name}"] += 1
            world.tell(f"{self.name} is killed before {at}")
            world.crash(self.name)


@dataclass(frozen=True)
class Start:
    name: str

    def apply(self, world):
        if not world.is_alive(self.name):
            world.tell(f"{self.name} is started")
            world.start(self.name)


@dataclass(frozen=True)
class Reboot:
    is_power_cut: bool

    def apply(self, world):
        what = "power cut" if self.is_power_cut else "reboot"
        world.injected[what] += 1
        made = world.history.end.sequence
        standing = ", ".join(
            f"{name} before {world.at(name)}" for name in (*world.names, MAKER) if world.is_alive(name))
        world.tell(f"{what}: {standing or 'nothing runs'}")
        world.tell(f"    the journal ends at sequence {world.reboot(self.is_power_cut)} of {made}")


@dataclass(frozen=True)
class DiskFault:
    kinds: tuple
    number: int
    after: int
    count: int

    def apply(self, world):
        what = "full disk" if self.number == NO_SPACE else "disk error"
        world.injected[what] += 1
        world.tell(f"{what}: {self.count} operations ({', '.join(self.kinds)}) will fail after {self.after} more")
        world.faults.arm(set(self.kinds), self.number, self.after, self.count)


@dataclass(frozen=True)
class ClockStep:
    nanoseconds: int

    def apply(self, world):
        world.injected["clock step"] += 1
        world.tell(f"the host's clock is set {self.nanoseconds / 1e9:+} s")
        world.clock.time_ns += self.nanoseconds


@dataclass(frozen=True)
class Flip:
    seed: int

    def apply(self, world):
        name = world.flip_snapshot(self.seed)
        if name is not None:
            world.injected["flipped snapshot"] += 1
            world.tell(f"a bit of {name} flips")


@dataclass(frozen=True)
class Rot:
    seed: int

    def apply(self, world):
        sequence = world.rot(self.seed)
        if sequence is not None:
            world.injected["rotten record"] += 1
            world.tell(f"a bit of record {sequence} flips, which is noticed, and back")


@dataclass(frozen=True)
class SecondCopy:
    name: str

    def apply(self, world):
        if world.second_copy(self.name):
            world.injected["second copy"] += 1
            world.tell(f"a second {self.name} is started, and refused")


@dataclass(frozen=True)
class Plan:
    seed: int
    settings: Settings
    actions: tuple


def plan_of(seed, sync=None):
    """The plan of this seed; `sync`: of the journal, any where it is None."""
    chance = random.Random(seed)
    gateways = chance.choice((1, 2))
    settings = Settings(
        sync=chance.choice(("always", "always", "interval", "none")), gateways=gateways,
        segment_slots=chance.choice((12, 28, 60)), batch_max=chance.choice((1, 3, 8, 64)),
        every_operations=chance.choice((4, 10, 30)), keep=chance.choice((1, 2, 3)))
    if sync is not None:
        settings.sync = sync
    return Plan(seed, settings, tuple(_actions(chance, gateways)))


def _actions(chance, gateways):
    names = [*GATEWAYS[:gateways], *RUN]
    runnable = [*names, MAKER]
    weights = [WEIGHTS[name.partition(" ")[0]] for name in runnable]
    wanted = Wanted(chance)
    pending = [(0, name) for name in names]  # (how many actions until then, who is to be started)
    for row in range(gateways):
        yield Send(row, wanted.deposits())
    chance.shuffle(pending)
    for _ in range(chance.randrange(ACTIONS // 2, ACTIONS * 3 // 2)):
        yield from (Start(name) for wait, name in pending if wait <= 0)
        pending = [(wait - 1, name) for wait, name in pending if wait > 0]
        draw = chance.random()
        if draw < FAULT_SHARE:
            fault = _fault(chance, names)
            yield fault
            stopped = names if isinstance(fault, Reboot) else [fault.name] if isinstance(fault, Kill) else []
            pending += [(chance.choice((0, 0, 1, 3, 12)), name) for name in chance.sample(stopped, len(stopped))]
        elif draw < FAULT_SHARE + SEND_SHARE:
            yield Send(chance.randrange(gateways), wanted.some())
        elif draw < FAULT_SHARE + SEND_SHARE + 0.05:
            yield Start(chance.choice(names))  # whoever ended by itself
        else:
            yield Run(chance.choices(runnable, weights)[0], chance.choice(STEPS))


def _fault(chance, names):
    kind = chance.choices(list(FAULTS), list(FAULTS.values()))[0]
    if kind == "kill":
        return Kill(chance.choice(names))
    if kind in ("power", "reboot"):
        return Reboot(kind == "power")
    if kind == "disk":
        if chance.random() < 0.5:
            return DiskFault(("write", "room", "name"), NO_SPACE, chance.randrange(12), chance.choice((1, 3, 20)))
        return DiskFault(chance.choice((("sync",), ("sync",), ("write",), ("name",))), BROKEN, chance.randrange(12),
                         chance.choice((1, 2)))
    if kind == "clock":
        return ClockStep(chance.choice((-1, 1)) * chance.choice((10**6, 10**9, 3600 * 10**9)))
    if kind == "flip":
        return Flip(chance.getrandbits(32))
    if kind == "rot":
        return Rot(chance.getrandbits(32))
    return SecondCopy(chance.choice(names))


class Wanted:
    """What clients want, each with a number of its own."""

    def __init__(self, chance):
        self._chance, self._number = chance, 0

    def _next(self, payload=b"", **fields):
        self._number += 1
        if fields["kind"] == Kind.UPDATE_BALANCE:
            fields["reference"] = self._number
        return self._number, tuple(fields.items()), payload

    def deposits(self):
        """Something for everybody to trade with."""
        return tuple(self._deposit(user, asset, 10**24) for user in USERS for asset in (0, 1))

    def _deposit(self, user, asset, change):
        low, high = halves(change)
        return self._next(bytes(self._chance.choice((0, 2, 40, 300))), kind=Kind.UPDATE_BALANCE, user_id=user,
                          asset_id=asset, change_low=low, change_high=high)

    def some(self):
        return tuple(self._one() for _ in range(self._chance.choice((1, 1, 2, 4, 9))))

    def _one(self):
        chance = self._chance
        user, draw = chance.choice(USERS), chance.random()
        if draw < 0.25:
            return self._deposit(user, chance.randrange(2), chance.choice((10**22, 10**20, -10**20, -10**26)))
        if draw < 0.6:
            return self._next(kind=Kind.PUT_LIMIT, user_id=user, side=chance.choice(list(map(int, Side))),
                              amount=chance.randint(1, 1000), price=chance.randint(95, 105),
                              taker_fee=chance.choice((0, 20)), maker_fee=chance.choice((0, 10)))
        if draw < 0.7:
            return self._next(kind=Kind.PUT_MARKET, user_id=user, side=chance.choice(list(map(int, Side))),
                              amount=chance.randint(1, 1000), taker_fee=chance.choice((0, 20)))
        if draw < 0.8:
            return self._next(kind=Kind.CANCEL, user_id=user, reference=chance.randint(1, 40))
        if draw < 0.9:
            return self._next(kind=Kind.QUERY_BALANCE, user_id=user, asset_id=ALL_ASSETS)
        return self._next(kind=Kind.LIST_BOOK, side=chance.choice(list(map(int, Side))), limit=3)
