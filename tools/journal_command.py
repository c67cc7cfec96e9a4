"""`exchange journal verify|stat|cat`: what stands in the journal's files. Nothing is written; the exchange may run."""
import json
from collections import Counter
from datetime import datetime, timezone

from shm.records import CONFIGURATION_GATEWAY, INT64_MAX, LIMITS, Kind
from tools import local_exchange, report
from tools.report import Failed
from tools.rerun import add_data_option, money, shown


def add_parser(subparsers):
    parser = subparsers.add_parser("journal", help="verifies and shows the journal's files",
                                   description="Looks at the journal's files and the snapshots, and changes nothing.")
    parts = parser.add_subparsers(title="what to do", metavar="COMMAND", required=True)
    for name, run, words in (
            ("verify", verify, "Checks every record's checksum, that each continues the one before, and every snapshot."
                               " Exit code 0: all is whole, and nothing is missing that was called synced."),
            ("stat", stat, "How many records of which kind, from when to when, and how large it is."),
            ("cat", cat, "The records, a JSON object a line.")):
        part = parts.add_parser(name, help=words.partition(".")[0].lower(), description=words)
        add_data_option(part)
        if name != "verify":
            part.add_argument("--from", type=int, default=1, dest="start", metavar="SEQUENCE", help="first record")
            part.add_argument("--to", type=int, default=INT64_MAX, dest="end", metavar="SEQUENCE", help="last record")
        report.add_json_option(part)
        part.set_defaults(run=run)


def journal_of(data):
    """(Journal as far back as its files go, instance). Raises Failed where it cannot be read."""
    local_exchange.prepare_kernels()
    from pipeline import journal, recovery, snapshot
    from pipeline.segment_file import JournalRefused, segments_of
    from shm.process import instance_of

    directory = data / recovery.JOURNAL
    if not directory.is_dir():
        raise Failed(f"{data} holds no journal: name a data directory with --data DIR")
    instance = instance_of(data)
    try:
        segments = segments_of(directory, instance)
        if not segments or segments[0].number == 1:
            return journal.spans(directory, instance), instance
        for found in reversed(snapshot.snapshots_of(data / recovery.SNAPSHOTS)):
            try:
                return journal.spans(directory, instance, behind=snapshot.place_of(found, instance)), instance
            except (snapshot.SnapshotDamaged, journal.NotOnTheJournal):
                continue
        raise Failed(f"the journal begins with {segments[0].path.name}, and no snapshot says where that is")
    except JournalRefused as refusal:
        raise Failed(str(refusal)) from refusal


def verify(options):
    found, instance = journal_of(options.data)
    from pipeline import recovery, snapshot

    problems, snapshots = [], []
    for saved in snapshot.snapshots_of(options.data / recovery.SNAPSHOTS):
        try:
            snapshot.restored(*snapshot.read(saved, instance), _no_limits())
            snapshots.append(saved.sequence)
        except (snapshot.SnapshotDamaged, OSError) as problem:
            problems.append(f"{saved.path}: {problem}")
    report.write_json(options.json, {
        "instance": str(instance), "first_sequence": _first(found), "last_sequence": found.end_sequence,
        "chain": f"{found.end_chain:016x}", "segments": len({span.path for span in found.spans}),
        "snapshots": snapshots, "remains": [str(part) for part in found.remains], "problems": problems})
    report.say(f"records {_first(found):,} to {found.end_sequence:,} are whole, chain value {found.end_chain:016x}")
    report.say(f"snapshots at {', '.join(f'{sequence:,}' for sequence in snapshots) or 'none'} are whole")
    for part in found.remains:
        report.say(f"behind the end, not part of the journal: {part}")
    for problem in problems:
        report.say(f"not well: {problem}")
    return 1 if problems else 0


def _no_limits():
    import numpy as np

    return np.zeros((), LIMITS)


def _first(found):
    return found.spans[0].first_sequence if found.spans else found.end_sequence


def records_of(found, start, end):
    """Yield (record, payload) of the sequences [start, end]."""
    from pipeline.segment_content import as_records

    for span in found.spans_from(start):
        slots, slot = span.slots, span.start_slot
        rows = as_records(slots)
        while slot < span.end_slot:
            record = rows[slot]
            if record["sequence"] > end:
                return
            behind = slot + int(record["record_slots"])
            yield record, slots[slot + 1:behind].tobytes()[:int(record["payload_bytes"])]
            slot = behind


def stat(options):
    found, _instance = journal_of(options.data)
    kinds, times, size = Counter(), [], 0
    for record, _payload in records_of(found, options.start, options.end):
        kinds[Kind(int(record["kind"])).name] += 1
        times = [times[0] if times else int(record["time_ns"]), int(record["time_ns"])]
        size += int(record["record_slots"]) * record.dtype.itemsize
    figures = {"records": sum(kinds.values()), "bytes": size, "kinds": dict(kinds.most_common()),
               "from": _when(times[0]) if times else None, "to": _when(times[1]) if times else None}
    report.write_json(options.json, figures)
    report.say_figures(figures)
    return 0


def _when(time_ns):
    return datetime.fromtimestamp(time_ns / 1e9, timezone.utc).isoformat(timespec="microseconds")


def cat(options):
    found, _instance = journal_of(options.data)
    shown_records = 0
    for record, payload in records_of(found, options.start, options.end):
        report.say(json.dumps(plain(record, payload), ensure_ascii=False))
        shown_records += 1
    report.write_json(options.json, {"records": shown_records})
    return 0


def plain(record, payload):
    """A record as plain values, in the journal's own units."""
    kind = Kind(int(record["kind"]))
    fields = {
        Kind.UPDATE_BALANCE: ("user_id", "asset_id"), Kind.CANCEL: ("user_id", "market_id"),
        Kind.PUT_LIMIT: ("user_id", "market_id", "side", "amount", "price", "taker_fee", "maker_fee"),
        Kind.PUT_MARKET: ("user_id", "market_id", "side", "amount", "taker_fee")}.get(kind, ())
    gateway = int(record["gateway"])
    document = {"sequence": int(record["sequence"]), "time": _when(int(record["time_ns"])), "kind": kind.name,
                "from": "configuration" if gateway == CONFIGURATION_GATEWAY else f"gateway row {gateway}",
                **{name: int(record[name]) for name in fields}}
    if kind == Kind.UPDATE_BALANCE:
        document["change"] = shown(money(record, "change"))
        document["business_id"] = int(record["reference"])
        document["detail"] = payload.decode(errors="replace")
    elif kind == Kind.CANCEL:
        document["order_id"] = int(record["reference"])
    if record["label_bytes"]:
        document["label"] = record["label"][:record["label_bytes"]].tobytes().decode(errors="replace")
    return document
