"""`exchange audit`: whether the money of all users is what came in less what went out and what was taken as fees."""

from shm.records import INT64_MAX
from tools import local_exchange, report
from tools.rerun import Rerun, add_data_option, money, shown


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "audit", help="whether money is exact, at any sequence",
        description="Runs the core over the journal, up to the newest record or to --at, and adds up every balance and"
        " what is frozen for every order. Exit code 0: of each asset the balances are exactly the deposits less"
        " withdrawals and fees, none is below zero, and what is frozen is what the open orders need.")
    add_data_option(parser)
    parser.add_argument("--at", type=int, default=INT64_MAX, metavar="SEQUENCE", help="the state behind this record")
    report.add_json_option(parser)
    parser.set_defaults(run=run)


def run(options):
    local_exchange.prepare_kernels()
    rerun = Rerun(options.data, options.at, report.say)
    rerun.run(options.at)
    assets, problems = audit(rerun)
    sequence = rerun.replica.sequence
    report.write_json(options.json, {"sequence": sequence, "assets": assets, "problems": problems})
    report.say(f"at sequence {sequence:,}")
    for asset in assets:
        report.say("  {asset}: available {available}, frozen {frozen}, deposits less withdrawals {deposited},"
                   " fees {fees}".format_map(asset))
    for problem in problems:
        report.say(f"not well: {problem}")
    if not problems:
        report.say("all money is accounted for, to the last digit")
    return 1 if problems else 0


def audit(rerun):
    """([figures of an asset], [problems])."""
    state, names = rerun.replica.state, rerun.assets()
    rows = state.balances[state.balances["key"] != 0]
    frozen = frozen_for_orders(rerun)
    figures, problems = [], []
    for asset_id, name in enumerate(names):
        own = rows[rows["asset_id"] == asset_id]
        sums = {field: sum(money(row, field) for row in own) for field in ("available", "frozen")}
        asset = state.assets[asset_id]
        deposited, fees = money(asset, "deposited"), money(asset, "fees")
        figures.append({"asset": name, "balances": len(own), **{field: shown(total) for field, total in sums.items()},
                        "deposited": shown(deposited), "fees": shown(fees)})
        if (held := sums["available"] + sums["frozen"]) != deposited - fees:
            problems.append(f"{name}: balances are {shown(held)}, deposits less withdrawals and fees"
                            f" {shown(deposited - fees)}")
        for field, total in sums.items():
            if total != money(asset, field):
                problems.append(f"{name}: {field} balances add up to {shown(total)}, the running total is"
                                f" {shown(money(asset, field))}")
        below = [int(row["key"]) >> 16 & 0xFFFFFFFF for row in own if min(money(row, "available"),
                                                                         money(row, "frozen")) < 0]
        if below:
            problems.append(f"{name}: below zero for user {below[0]} and {len(below) - 1} others")
        if sums["frozen"] != frozen[asset_id]:
            problems.append(f"{name}: {shown(sums['frozen'])} is frozen, open orders need {shown(frozen[asset_id])}")
    return figures, problems


def frozen_for_orders(rerun):
    """By asset id: what all open orders need, an ask its stock, a bid price x left of its money."""
    from pipeline.snapshot import content_of
    from shm.records import Side

    state = rerun.replica.state
    totals = [0] * len(rerun.assets())
    for order in content_of(state)["orders"]:
        market = state.markets[order["market_id"]]
        left = int(order["left_low"])
        if order["side"] == Side.ASK:
            totals[market["stock_asset_id"]] += left * money(market, "stock_unit")
        else:
            totals[market["money_asset_id"]] += left * int(order["price"]) * money(market, "deal_unit")
    return totals
