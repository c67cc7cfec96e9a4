"""`exchange explain USER ASSET`: why a balance is what it is: every change of it, from the journal."""
from datetime import datetime, timezone

import numpy as np

from shm.decimals import fmt
from shm.records import INT64_MAX, EventKind, Kind, Side
from tools import local_exchange, report
from tools.report import Failed
from tools.rerun import Rerun, add_data_option, money, shown

SIDES = {Side.ASK: "sell", Side.BID: "buy"}
KINDS = {Kind.UPDATE_BALANCE: "balance.update", Kind.PUT_LIMIT: "order.put_limit", Kind.PUT_MARKET: "order.put_market",
         Kind.CANCEL: "order.cancel"}


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "explain", help="why a balance is what it is: every change of it",
        description="Runs the core over the journal and tells every record that changed what the user has of the asset,"
        " available or frozen, with the deals in it. A journal without its beginning is told from its oldest snapshot"
        " on. Exit code 0: there was something to tell.")
    parser.add_argument("user", type=int, metavar="USER", help="the user's id")
    parser.add_argument("asset", metavar="ASSET", help="the asset's name")
    add_data_option(parser)
    parser.add_argument("--from", type=int, default=1, dest="start", metavar="SEQUENCE", help="first record to tell")
    parser.add_argument("--to", type=int, default=INT64_MAX, dest="end", metavar="SEQUENCE", help="last one")
    report.add_json_option(parser)
    parser.set_defaults(run=run)


def run(options):
    local_exchange.prepare_kernels()
    rerun = oldest_start(options)
    rerun.run(options.start - 1)
    changes = []
    opening = balance_of(rerun, options)
    if opening != (0, 0):
        report.say(f"before sequence {options.start:,}: available {shown(opening[0])}, frozen {shown(opening[1])}")
    for change in changes_of(rerun, options):
        report.say(words_of(change))
        changes.append(change)
    report.write_json(options.json, {"user": options.user, "asset": options.asset, "changes": changes})
    if not changes:
        raise Failed(f"user {options.user} had no {options.asset} in these records")
    return 0


def oldest_start(options):
    """A Rerun that begins before the first record to tell, as early as the journal allows."""
    try:
        return Rerun(options.data, options.start - 1, report.say)
    except Failed:             # the beginning is gone: the oldest snapshot is as far back as it goes
        from pipeline import recovery, snapshot

        found = snapshot.snapshots_of(options.data / recovery.SNAPSHOTS)
        if not found:
            raise
        report.say(f"the journal before sequence {found[-1].sequence:,} is gone: this begins there")
        options.start = found[-1].sequence + 1
        return Rerun(options.data, found[-1].sequence, report.say)


def asset_id_of(rerun, name):
    names = rerun.assets()
    return names.index(name) if name in names else None


def balance_of(rerun, options):
    """(available, frozen) in 10^-20."""
    asset_id = asset_id_of(rerun, options.asset)
    if asset_id is None:
        return 0, 0
    balances = rerun.replica.state.balances
    found = balances[balances["key"] == np.uint64(1 << 63 | options.user << 16 | asset_id)]
    return (money(found[0], "available"), money(found[0], "frozen")) if len(found) else (0, 0)


def changes_of(rerun, options):
    """Yield every change as a dictionary of plain values."""
    from pipeline.replay import replay_until_change
    from pipeline.segment_content import as_records

    replica, before = rerun.replica, balance_of(rerun, options)
    for path, slots, slot, end in rerun.read(options.end):
        records = as_records(slots)
        while slot < end:
            asset_id = asset_id_of(rerun, options.asset)
            stop = end if asset_id is not None else slot + int(records[slot]["record_slots"])
            first = slot
            slot, has_changed = replay_until_change(
                replica.state, replica.inbox, replica.out, records, slots, slot, stop, options.user,
                asset_id or 0)
            if has_changed and asset_id is not None:
                after = balance_of(rerun, options)
                yield change_of(rerun, options, before, after)
                before = after
            elif slot < stop:
                raise Failed(f"{path} slot {slot}: the record has not the outcome it had; restore it from a copy")
            assert slot > first


def change_of(rerun, options, before, after):
    """The record that was applied last, as far as it concerns the balance."""
    replica = rerun.replica
    command, sequence = replica.inbox.command[0], replica.sequence
    kind = Kind(int(command["kind"]))
    change = {
        "sequence": sequence, "time": int(replica.out.header[0]["time_ns"]) / 1e9,
        "request": KINDS.get(kind, kind.name),
        "available_change": shown(after[0] - before[0]), "frozen_change": shown(after[1] - before[1]),
        "available": shown(after[0]), "frozen": shown(after[1])}
    if kind == Kind.UPDATE_BALANCE:
        change["business"] = command["label"][:command["label_bytes"]].tobytes().decode(errors="replace")
        change["business_id"] = int(command["reference"])
    else:
        change["market"] = rerun.markets()[command["market_id"]]
        change["order"] = int(command["reference"]) if kind == Kind.CANCEL else int(
            replica.out.orders[0]["order_id"])
        change["by_user"] = int(command["user_id"])
        change["deals"] = deals_of(rerun, options.user)
    return change


def deals_of(rerun, user):
    """The user's deals in the record that was applied last."""
    state, deals = rerun.replica.state, []
    for event in rerun.replica.last_events():
        if event["sequence"] == rerun.replica.sequence and event["kind"] == EventKind.DEAL:
            market = state.markets[event["market_id"]]
            for side, name in ((Side.ASK, "ask"), (Side.BID, "bid")):
                if event[f"{name}_user_id"] == user:
                    deals.append({
                        "deal": int(event["deal_id"]), "side": SIDES[side], "order": int(event[f"{name}_order_id"]),
                        "role": "taker" if event["taker_side"] == side else "maker",
                        "price": fmt(int(event["price"]), int(market["money_prec"])),
                        "amount": fmt(int(event["amount"]), int(market["stock_prec"])),
                        "fee": shown(money(event, f"{name}_fee"))})
    return deals


def words_of(change):
    when = datetime.fromtimestamp(change["time"], timezone.utc).isoformat(timespec="milliseconds")
    what = f"{change['request']} {change['business']} {change['business_id']}" if "business" in change else (
        f"{change['request']} order {change['order']} in {change['market']} by user {change['by_user']}")
    lines = [f"{change['sequence']:>10,} {when} {what}: available {_signed(change['available_change'])} ="
             f" {change['available']}, frozen {_signed(change['frozen_change'])} = {change['frozen']}"]
    lines += [f"           deal {deal['deal']}: {deal['role']} {deal['side']} {deal['amount']} at {deal['price']},"
              f" fee {deal['fee']}, order {deal['order']}" for deal in change.get("deals", ())]
    return "\n".join(lines)


def _signed(text):
    return text if text.startswith("-") else f"+{text}"
