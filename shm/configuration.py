"""The configuration: one TOML file, read once at start, every problem of it told at once.

Assets, markets and limits seed the journal of a new data directory; replay never reads this file. Each field says its
unit and what it trades away. `exchange.toml` in the project's root is the same with words for an operator.
"""
import difflib
import json
import re
import sys
from dataclasses import MISSING, dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path

from shm.records import (
    ALL_ASSETS,
    ASSET,
    ASSET_NAME_BYTES_MAX,
    ASSET_SUMMARY,
    BALANCE_ROW,
    COMMAND_SLOTS_MAX,
    DEPTH_ROW,
    INT64_MAX,
    JOURNAL,
    LIST_LIMIT_MAX,
    MARKET,
    MARKET_NAME_BYTES_MAX,
    MARKET_SUMMARY,
    MONEY_DECIMALS,
    ORDER,
    REPLY_HEADER,
    REPLY_SLOT_BYTES,
)
from shm.segments import GATEWAYS_MAX, RingSizes, Role

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HTTP_GATEWAY, BINARY_GATEWAY = "gateway", "binary"  # what gateways' names begin with
PRECISION_MAX = 18             # decimals of prices and amounts: int64 ticks and lots
FEE_PRECISION_MAX = 9
PAGE_BYTES = 4096
SLOTS_MAX = 2**24              # of one ring
ROWS_MAX = 2**30               # of one table of the core: row numbers are int32


class ConfigurationError(Exception):
    """The configuration cannot be used; `problems` lists every one: key, value, rule."""

    def __init__(self, problems, source="the configuration"):
        self.problems = list(problems)
        count = f"{len(self.problems)} problems" if len(self.problems) > 1 else "1 problem"
        super().__init__("\n".join([f"{count} in {source}:", *(f"  - {problem}" for problem in self.problems)]))


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words that follow "must be"."""
    words: str
    holds: object              # value -> bool


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(least, most, multiple_of=1):
    words = f"a whole number from {least} to {most}" + (f", a multiple of {multiple_of}" if multiple_of > 1 else "")
    return Rule(words, lambda value: _is_whole(value) and least <= value <= most and value % multiple_of == 0)


def _power_of_two(least, most):
    return Rule(f"a power of two from {least} to {most}",
                lambda value: _is_whole(value) and least <= value <= most and value & (value - 1) == 0)


def _name(bytes_max):
    return Rule(
        f"text of 1 to {bytes_max} bytes without control characters",
        lambda value: isinstance(value, str) and 0 < len(value.encode(errors="replace")) <= bytes_max
        and value.isprintable())


def _setting(rule, default=MISSING):
    return field(default=default, metadata={"rule": rule})


def _is_amount(text):
    """Whether it is a positive decimal number whose digits, as written, fit int64."""
    if not re.fullmatch(r"[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?", text):
        return False
    number = Decimal(text)
    decimals = max(-number.as_tuple().exponent, 0)
    return 0 < number <= Decimal(INT64_MAX).scaleb(-decimals) and decimals <= MONEY_DECIMALS


_TRUTH = Rule("true or false", lambda value: isinstance(value, bool))
_HOST = Rule("a host name or address without spaces, such as \"127.0.0.1\"",
             lambda value: isinstance(value, str) and re.fullmatch(r"[^\s/]+", value) is not None)
_PATH = Rule("a path, or \"\" for the folder cache in the data directory",
             lambda value: isinstance(value, str) and "\0" not in value)
_FOLDER = Rule("an absolute path of a folder, or \"\"",
               lambda value: isinstance(value, str) and "\0" not in value and (not value or value.startswith("/")))
_SYNC = Rule("\"always\", \"interval\" or \"none\"",
             lambda value: isinstance(value, str) and value in ("always", "interval", "none"))
_MIN_AMOUNT = Rule(
    f"a positive decimal number in quotes, such as \"0.01\", of at most {MONEY_DECIMALS} decimals, its digits together"
    f" at most {INT64_MAX}",
    lambda value: isinstance(value, str) and _is_amount(value))


@dataclass(frozen=True)
class Http:
    """Where clients connect."""
    host: str = _setting(_HOST, "127.0.0.1")
    port: int = _setting(_whole(1, 65535), 8080)
    timeout_ms: int = _setting(_whole(1, 10_000), 1000)               # wait for a reply, then code 5; it may still run
    gateways: int = _setting(_whole(1, GATEWAYS_MAX), 1)              # processes that share the port
    body_bytes_max: int = _setting(_whole(1024, 2**26), 102_400)      # of one request; more memory a connection
    connections_max: int = _setting(_whole(1, 1_000_000), 16_384)     # of one gateway; beyond it: 503
    in_flight_max: int = _setting(_whole(1, 65_536), 64)              # requests of one connection; the rest waits
    batch_max: int = _setting(_whole(0, 1000), 0)                     # requests of one body, as an array; 0: none
    pretty: bool = _setting(_TRUTH, False)                            # indented answers, for people


@dataclass(frozen=True)
class Binary:
    """The binary order-entry port; off without gateways. docs/binary-port.md"""
    gateways: int = _setting(_whole(0, GATEWAYS_MAX), 0)              # processes that share the port; 0: no port
    host: str = _setting(_HOST, "127.0.0.1")
    port: int = _setting(_whole(1, 65535), 8070)
    timeout_ms: int = _setting(_whole(1, 10_000), 1000)               # wait for a reply, then code 5; it may still run
    connections_max: int = _setting(_whole(1, 1_000_000), 1024)       # of one gateway; beyond it: refused
    in_flight_max: int = _setting(_whole(1, 65_536), 1024)            # requests of one connection; the rest waits


@dataclass(frozen=True)
class Journal:
    """What an answer promises."""
    sync: str = _setting(_SYNC, "always")                             # always: on disk before it is answered
    sync_interval_ms: int = _setting(_whole(1, 60_000), 100)          # of interval: what a power cut may lose
    segment_bytes: int = _setting(_whole(PAGE_BYTES, 2**34, PAGE_BYTES), 33_554_432)  # of a file, preallocated
    keep_bytes: int = _setting(_whole(0, 2**50), 2**33)               # that a follower may keep beyond the snapshots
    archive: str = _setting(_FOLDER, "")                              # where old segments go; "": they are removed


@dataclass(frozen=True)
class Snapshots:
    """What a start reads before the journal; the journal before the oldest one is let go."""
    every_operations: int = _setting(_whole(1000, 2**40), 1_000_000)  # more: longer starts, fewer files written
    every_s: int = _setting(_whole(1, 31_536_000), 3600)              # with fewer operations too
    keep: int = _setting(_whole(1, 1000), 3)                          # a start falls back on an older one


@dataclass(frozen=True)
class Limits:
    """Capacities, reserved when the matcher starts; full is a refusal. They seed a new journal."""
    orders_max: int = _setting(_whole(1, ROWS_MAX), 1_000_000)        # resting orders
    levels_max: int = _setting(_whole(1, ROWS_MAX), 1_000_000)        # price levels of all markets
    balances_max: int = _setting(_whole(1, ROWS_MAX), 1_000_000)      # pairs of user and asset
    assets_max: int = _setting(_whole(1, ALL_ASSETS), 256)
    markets_max: int = _setting(_whole(1, ALL_ASSETS), 256)


@dataclass(frozen=True)
class Matcher:
    spin_us: int = _setting(_whole(0, 1_000_000), 0)                  # look this long before sleeping: burns a core
    batch_max: int = _setting(_whole(1, 65_536), 256)                 # commands between two publications
    clock_jump_max_ms: int = _setting(_whole(1, 86_400_000), 1000)    # a larger step of the clock is an alert


@dataclass(frozen=True)
class Watcher:
    stuck_after_ms: int = _setting(_whole(2000, 3_600_000), 10_000)   # without a heartbeat: killed and restarted


@dataclass(frozen=True)
class Cache:
    directory: str = _setting(_PATH, "")                              # of compiled kernels; "": in the data directory


@dataclass(frozen=True)
class Asset:
    name: str = _setting(_name(ASSET_NAME_BYTES_MAX))
    prec_save: int = _setting(_whole(0, MONEY_DECIMALS))              # decimals a balance keeps
    prec_show: int = _setting(_whole(0, MONEY_DECIMALS))              # decimals shown, and accepted from clients


@dataclass(frozen=True)
class Market:
    name: str = _setting(_name(MARKET_NAME_BYTES_MAX))
    stock: str = _setting(_name(ASSET_NAME_BYTES_MAX))                # the asset traded
    money: str = _setting(_name(ASSET_NAME_BYTES_MAX))                # the asset paid
    stock_prec: int = _setting(_whole(0, PRECISION_MAX))              # decimals of amounts
    money_prec: int = _setting(_whole(0, PRECISION_MAX))              # decimals of prices
    fee_prec: int = _setting(_whole(0, FEE_PRECISION_MAX), 4)         # decimals of fee rates
    min_amount: str = _setting(_MIN_AMOUNT, "0.01")                   # of stock; as written


@dataclass(frozen=True)
class Configuration:
    http: Http
    binary: Binary
    journal: Journal
    snapshots: Snapshots
    rings: RingSizes           # its number of gateways is always that of both kinds
    limits: Limits
    matcher: Matcher
    watcher: Watcher
    cache: Cache
    assets: tuple              # of Asset; their order is the order of their ids
    markets: tuple             # of Market; their order is the order of their ids

    def __post_init__(self):
        object.__setattr__(self, "rings", replace(self.rings, gateways=self.http.gateways + self.binary.gateways))

    @property
    def gateways(self):
        """The gateways' names in the order of their rows in the rings: those for HTTP, then the binary ones."""
        return (*(f"{HTTP_GATEWAY}-{index}" for index in range(self.http.gateways)),
                *(f"{BINARY_GATEWAY}-{index}" for index in range(self.binary.gateways)))

    def role_of(self, name):
        """The Role of a process, by its name under supervisord: its row in the segments of sleepers and counters."""
        return Role.GATEWAY + self.gateways.index(name) if name in self.gateways else int(Role[name.upper()])

    def cache_root(self, data):
        """Where compiled kernels belong."""
        return Path(self.cache.directory) if self.cache.directory else Path(data) / "cache"


_SECTIONS = {
    "http": Http, "binary": Binary, "journal": Journal, "snapshots": Snapshots, "limits": Limits, "matcher": Matcher,
    "watcher": Watcher, "cache": Cache}
_RING_RULES = {
    "command_slots": _power_of_two(64, SLOTS_MAX),
    "reply_slots": _power_of_two(128, SLOTS_MAX),
    "journal_slots": _power_of_two(128, SLOTS_MAX),
    "event_slots": _power_of_two(64, SLOTS_MAX),
}


def reply_slots_needed(limits):
    """Slots of the largest reply there can be under these limits."""
    payload_bytes = max(
        2 * LIST_LIMIT_MAX * DEPTH_ROW.itemsize,
        LIST_LIMIT_MAX * ORDER.itemsize,
        limits.assets_max * max(ASSET.itemsize, ASSET_SUMMARY.itemsize, BALANCE_ROW.itemsize),
        limits.markets_max * max(MARKET.itemsize, MARKET_SUMMARY.itemsize))
    return -(-(REPLY_HEADER.itemsize + payload_bytes) // REPLY_SLOT_BYTES)


def reserve_slots(gateways, command_slots, journal_slots):
    """Slots that may still come to the journal when its room is looked at: the ring once in the span that is written
    until the next look, and once more, full again by then, behind full command rings; and from each gateway a command
    that was on its way when writes were refused. No record takes more slots than its command."""
    return 2 * journal_slots + gateways * (command_slots + COMMAND_SLOTS_MAX)


def segment_bytes_needed(rings):
    """Bytes of a journal file that takes the reserve twice over: what has entered still fits, and some more does."""
    slots = 2 * reserve_slots(rings.gateways, rings.command_slots, rings.journal_slots)
    return PAGE_BYTES + -(-slots * JOURNAL.itemsize // PAGE_BYTES) * PAGE_BYTES


def parse_address(text):
    """(host, port) of HOST:PORT; an IPv6 host stands in brackets. Raises ConfigurationError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not _HOST.holds(host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ConfigurationError(
            [f"{text}: must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080, the port from 1 to 65535"],
            "the HTTP address")
    return host, int(port)


def load(path):
    """The configuration in the file `path`; raises ConfigurationError with every problem of it.

    A relative cache directory is meant from the file's folder.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError:
        raise ConfigurationError(
            [f"there is no file {path.absolute()}: name the configuration with --config FILE"], path) from None
    except OSError as error:
        raise ConfigurationError([f"it cannot be read: {error.strerror}"], path) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError([f"byte {error.start} is not UTF-8 text: a TOML file must be"], path) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError([f"it is not TOML: {error}"], path) from None
    cache = document.get("cache")
    if isinstance(cache, dict) and isinstance(cache.get("directory"), str) and cache["directory"]:
        cache["directory"] = str(path.absolute().parent / cache["directory"])
    return parse(document, path)


def parse(document, source="the configuration"):
    """The configuration that `document` (of dicts and lists, as TOML gives them) describes.

    Raises ConfigurationError with every problem of it.
    """
    reader = _Reader()
    reader.refuse_unknown("", document, [*_SECTIONS, "rings", "assets", "markets"])
    sections = {name: kind(**reader.table(name, document.get(name, {}), _rules(kind), _defaults(kind)))
                for name, kind in _SECTIONS.items()}
    rings = RingSizes(gateways=reader.gateways(sections["http"], sections["binary"]), **reader.table(
        "rings", document.get("rings", {}), _RING_RULES, {key: getattr(RingSizes, key) for key in _RING_RULES}))
    assets = reader.assets(document.get("assets", []))
    markets = reader.markets(document.get("markets", []), assets)
    reader.check_ports(sections["http"], sections["binary"])
    reader.check_rings(rings, sections["limits"], sections["journal"])
    reader.check_counts(sections["limits"], document)
    if reader.problems:
        raise ConfigurationError(reader.problems, source)
    return Configuration(
        rings=rings, assets=tuple(Asset(**asset) for asset in assets),
        markets=tuple(Market(**market) for market in markets), **sections)


def from_recording(config, **overrides):
    """The configuration of a conformance recording's meta line.

    `overrides` are sections: `from_recording(config, http={"port": 9000}, journal={"sync": "none"})`.
    """
    document = {
        "http": {"timeout_ms": round(config.get("http_timeout", 1.0) * 1000)},
        "assets": [dict(asset) for asset in config["assets"]],
        "markets": [{
            "name": market["name"], "stock": market["stock"]["name"], "stock_prec": market["stock"]["prec"],
            "money": market["money"]["name"], "money_prec": market["money"]["prec"],
            **{key: market[key] for key in ("fee_prec", "min_amount") if key in market},
        } for market in config["markets"]],
    }
    for section, values in overrides.items():
        document[section] = {**document.get(section, {}), **values} if isinstance(values, dict) else values
    return parse(document, "the recording's configuration")


def to_toml(configuration):
    """The text of a file that `load` reads as this configuration."""
    lines = []
    for name, kind in [*_SECTIONS.items(), ("rings", _RING_RULES)]:
        section = getattr(configuration, name)
        keys = kind if name == "rings" else _rules(kind)
        lines += [f"[{name}]", *(f"{key} = {_toml(getattr(section, key))}" for key in keys), ""]
    for name, rows in (("assets", configuration.assets), ("markets", configuration.markets)):
        for row in rows:
            lines += [f"[[{name}]]", *(f"{key} = {_toml(getattr(row, key))}" for key in _rules(type(row))), ""]
    return "\n".join(lines)


def write(configuration, path):
    """Make the file `path` that `load` reads as this configuration."""
    Path(path).write_text(to_toml(configuration), encoding="utf-8")


def _toml(value):
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON may leave it as it is, TOML not


def _shown(value):
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _rules(kind):
    return {setting.name: setting.metadata["rule"] for setting in fields(kind)}


def _defaults(kind):
    return {setting.name: setting.default for setting in fields(kind) if setting.default is not MISSING}


class _Reader:
    """One pass over a document that collects the problems instead of stopping at the first.

    A value that breaks its rule is None from then on, and no rule that needs it speaks again.
    """

    def __init__(self):
        self.problems = []

    def refuse(self, key, value, rule):
        self.problems.append(f"{key} = {_shown(value)}: {rule}")

    def refuse_unknown(self, prefix, table, known):
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                self.problems.append(
                    f"{prefix}{key} = {_shown(table[key])}: no such key; "
                    + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"))

    def table(self, name, table, rules, defaults):
        """{key: value} of a table, by its rules; None where a value breaks one, or is missing without a default."""
        separator = "." if name in _SECTIONS or name == "rings" else " "
        if not isinstance(table, dict):
            self.refuse(name, table, f"must be a table, [{name}]")
            table = {}
        self.refuse_unknown(f"{name}{separator}", table, list(rules))
        values = {}
        for key, rule in rules.items():
            values[key] = table.get(key, defaults.get(key))
            if key not in table and key not in defaults:
                self.problems.append(f"{name}{separator}{key} is missing: must be {rule.words}")
            elif not rule.holds(values[key]):
                self.refuse(f"{name}{separator}{key}", values[key], f"must be {rule.words}")
                values[key] = None
        return values

    def rows(self, name, rows):
        """The tables of [[name]], each with the words that point at it."""
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.refuse(name, rows, f"must be tables, each begun with [[{name}]]")
            return []
        named = [(row, f"{name} {_shown(row['name'])}" if row.get("name") else f"{name} #{number}")
                 for number, row in enumerate(rows, 1)]
        seen = set()
        for row, words in named:
            if isinstance(row.get("name"), str):
                if row["name"] in seen:
                    self.refuse(f"{words} name", row["name"], "stands twice: each name once")
                seen.add(row["name"])
        return named

    def assets(self, rows):
        if rows == []:
            self.problems.append("assets is missing: at least one [[assets]] with name and prec_save")
        found = []
        for row, words in self.rows("assets", rows):
            rules = _rules(Asset)
            kept = row.get("prec_save")
            asset = self.table(words, row, rules, {"prec_show": kept if rules["prec_save"].holds(kept) else 0})
            if None not in (asset["prec_save"], asset["prec_show"]) and asset["prec_show"] > asset["prec_save"]:
                self.refuse(f"{words} prec_show", asset["prec_show"],
                            f"must be at most its prec_save, {asset['prec_save']}: what is not kept cannot be shown")
            found.append(asset)
        return found

    def markets(self, rows, assets):
        by_name = {asset["name"]: asset for asset in assets if asset["name"] is not None}
        found = []
        for row, words in self.rows("markets", rows):
            market = self.table(words, row, _rules(Market), _defaults(Market))
            for key in ("stock", "money"):
                if market[key] is not None and market[key] not in by_name:
                    near = difflib.get_close_matches(market[key], by_name, 1)
                    self.refuse(f"{words} {key}", market[key], "must be the name of one of the assets"
                                + (f"; did you mean {_shown(near[0])}?" if near else ""))
            self.check_precisions(words, market, by_name)
            self.check_min_amount(words, market)
            found.append(market)
        return found

    def check_precisions(self, words, market, assets):
        """Every product of a trade has an exact place in the balances."""
        stock_prec, money_prec, fee_prec = (market[key] for key in ("stock_prec", "money_prec", "fee_prec"))
        stock_saved = assets.get(market["stock"], {}).get("prec_save")
        money_saved = assets.get(market["money"], {}).get("prec_save")
        if None not in (stock_prec, fee_prec, stock_saved) and stock_prec + fee_prec > stock_saved:
            self.refuse(
                f"{words} stock_prec + fee_prec", stock_prec + fee_prec,
                f"must be at most the prec_save of {market['stock']}, {stock_saved}: a buyer's fee is amount x rate and"
                f" has {stock_prec} + {fee_prec} decimals. Raise that prec_save (at most {MONEY_DECIMALS}) or lower"
                " stock_prec or fee_prec")
        if None not in (stock_prec, money_prec, fee_prec, money_saved) \
                and stock_prec + money_prec + fee_prec > money_saved:
            self.refuse(
                f"{words} stock_prec + money_prec + fee_prec", stock_prec + money_prec + fee_prec,
                f"must be at most the prec_save of {market['money']}, {money_saved}: a seller's fee is price x amount x"
                f" rate and has {money_prec} + {stock_prec} + {fee_prec} decimals. The original server started with"
                " such a market and silently cut what did not fit off the seller's balance, while the deal showed the"
                f" whole fee. Raise that prec_save (at most {MONEY_DECIMALS}) or lower one of the three")

    def check_min_amount(self, words, market):
        """An order's amount is a 64-bit number of lots, and so is the smallest one."""
        min_amount, stock_prec = market["min_amount"], market["stock_prec"]
        if None not in (min_amount, stock_prec) and Decimal(min_amount).scaleb(stock_prec) > INT64_MAX:
            self.refuse(f"{words} min_amount", min_amount,
                        f"must be at most {INT64_MAX} units of 10^-{stock_prec}, as stock_prec says: no order could be"
                        " as large")

    def gateways(self, http, binary):
        """How many of both kinds; None where that is too many, or not known."""
        if None in (http.gateways, binary.gateways):
            return None
        count = http.gateways + binary.gateways
        if count <= GATEWAYS_MAX:
            return count
        self.refuse("binary.gateways", binary.gateways,
                    f"must be at most {GATEWAYS_MAX - http.gateways} beside http.gateways = {http.gateways}: there may"
                    f" be {GATEWAYS_MAX} of both kinds")
        return None

    def check_ports(self, http, binary):
        if binary.gateways and None not in (http.port, http.host) and (http.host, http.port) == (
                binary.host, binary.port):
            self.refuse("binary.port", binary.port, "must be another one than http.port")

    def check_rings(self, rings, limits, journal):
        if None not in (rings.reply_slots, limits.assets_max, limits.markets_max):
            needed = reply_slots_needed(limits)
            if rings.reply_slots < needed:
                self.refuse("rings.reply_slots", rings.reply_slots,
                            f"must be at least {needed}, the slots of the largest reply under [limits] assets_max ="
                            f" {limits.assets_max} and markets_max = {limits.markets_max}")
        if None not in (rings.gateways, rings.command_slots, rings.journal_slots, journal.segment_bytes):
            needed = segment_bytes_needed(rings)
            if journal.segment_bytes < needed:
                self.refuse("journal.segment_bytes", journal.segment_bytes,
                            f"must be at least {needed}, so that all that {rings.gateways} command rings of"
                            f" {rings.command_slots} slots and the journal ring of {rings.journal_slots} hold fits when"
                            " the disk is full")

    def check_counts(self, limits, document):
        for name, most in (("assets", limits.assets_max), ("markets", limits.markets_max)):
            rows = document.get(name, [])
            if most is not None and isinstance(rows, list) and len(rows) > most:
                self.refuse(f"limits.{name}_max", most, f"must be at least {len(rows)}, the number of [[{name}]]")
