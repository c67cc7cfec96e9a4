"""`exchange journal`, `audit` and `explain` on a data directory that no process has open."""
import json
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pytest

from pipeline.segment_file import HEADER_BYTES
from shm.records import EventKind, Kind
from tests.core_journal import CoreJournal
from tests.test_snapshot import SETTINGS, Flow
from tools import audit, cli
from tools.rerun import money, shown

USERS = range(1, 13)


@pytest.fixture
def world(tmp_path):
    made = CoreJournal(tmp_path / "data", SETTINGS)
    (made.data / "instance").write_text(f"{made.instance}\n")
    return made


def tool(world, tmp_path, *arguments):
    """(exit code, what --json wrote) of a sub-command on the world's data directory."""
    path = tmp_path / "result.json"
    path.unlink(missing_ok=True)
    code = cli.main([*map(str, arguments), "--data", str(world.data), "--json", str(path)])
    return code, json.loads(path.read_text(encoding="utf-8"))


def test_a_whole_journal_is_verified_with_its_snapshots(world, tmp_path, capsys):
    flow = Flow(1)
    world.run(flow, 1500)
    saved = world.save()
    world.run(flow, 300)
    code, result = tool(world, tmp_path, "journal", "verify")
    assert code == 0 and result["snapshots"] == [saved.sequence]
    assert (result["first_sequence"], result["last_sequence"]) == (1, world.place.sequence)
    assert result["chain"] == f"{world.place.chain:016x}" and result["instance"] == str(world.instance)
    assert "are whole" in capsys.readouterr().out


def test_a_flipped_byte_in_a_record_or_a_snapshot_is_found(world, tmp_path, capsys):
    world.run(Flow(2), 1500)
    saved = world.save()
    content = bytearray(saved.path.read_bytes())
    content[-1] ^= 1
    saved.path.write_bytes(content)
    code, result = tool(world, tmp_path, "journal", "verify")
    assert code == 1 and str(saved.path) in result["problems"][0]
    saved.path.unlink()
    path = world.data / "journal" / "00000001.journal"
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + 100 * 256 + 40] ^= 1
    path.write_bytes(content)
    code, result = tool(world, tmp_path, "journal", "verify")
    assert code == 1 and f"{path} at offset {HEADER_BYTES + 100 * 256}" in capsys.readouterr().err


def test_a_journal_without_its_beginning_is_verified_from_its_oldest_snapshot_on(world, tmp_path):
    flow = Flow(3)
    world.run(flow, 1500)
    saved = world.save()
    world.run(flow, 1500)
    (world.data / "journal" / "00000001.journal").unlink()
    code, result = tool(world, tmp_path, "journal", "verify")
    assert code == 0
    assert (result["first_sequence"], result["last_sequence"]) == (saved.sequence + 1, world.place.sequence)


def test_records_are_counted_and_shown(world, tmp_path, capsys):
    world.run(Flow(4), 800)
    code, figures = tool(world, tmp_path, "journal", "stat")
    assert code == 0 and figures["records"] == world.place.sequence == sum(figures["kinds"].values())
    assert figures["kinds"]["ADD_ASSET"] == 3
    capsys.readouterr()
    code, result = tool(world, tmp_path, "journal", "cat", "--from", "2", "--to", "40")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0 and [line["sequence"] for line in lines] == list(range(2, 41)) and result == {"records": 39}
    update = next(line for line in lines if line["kind"] == "UPDATE_BALANCE")
    assert update["detail"] == "{}" and Decimal(update["change"]) and update["from"] == "configuration"


@pytest.mark.parametrize("at", [None, 50, 200])
def test_all_money_is_accounted_for_at_any_sequence(world, tmp_path, at):
    flow = Flow(5)
    world.run(flow, 600)
    world.save()
    world.run(flow, 600)
    code, result = tool(world, tmp_path, "audit", *(["--at", at] if at else []))
    assert code == 0 and result["problems"] == [] and result["sequence"] == (at or world.place.sequence)
    for asset in result["assets"]:
        held = Decimal(asset["available"]) + Decimal(asset["frozen"])
        assert held == Decimal(asset["deposited"]) - Decimal(asset["fees"])
    assert at or any(Decimal(asset["fees"]) and Decimal(asset["frozen"]) for asset in result["assets"])


def test_money_that_is_not_there_is_told(world):
    world.run(Flow(6), 1500)

    class Tampered:
        replica = world.replica

        @staticmethod
        def assets():
            return [asset.name for asset in SETTINGS.assets]
    assert audit.audit(Tampered)[1] == []
    row = np.flatnonzero(world.replica.state.balances["key"])[0]
    world.replica.state.balances["available_low"][row] += 1
    problems = audit.audit(Tampered)[1]
    assert len(problems) == 2 and "deposits less withdrawals and fees" in problems[0]
    world.replica.state.balances["available_low"][row] -= 1
    world.replica.state.balances["frozen_low"][row] += 1
    assert any("open orders need" in problem for problem in audit.audit(Tampered)[1])


def test_every_balance_is_explained_by_changes_that_add_up_to_it(world, tmp_path):
    world.run(Flow(7), 2500)
    state, explained = world.replica.state, 0
    rows = state.balances[state.balances["key"] != 0]
    for row in rows:
        user, asset = int(row["key"]) >> 16 & 0xFFFFFFFF, SETTINGS.assets[row["asset_id"]].name
        if row["available_low"] == row["frozen_low"] == 0:
            continue
        code, result = tool(world, tmp_path, "explain", user, asset)
        changes = result["changes"]
        assert code == 0 and changes
        for field in ("available", "frozen"):
            total = sum(Decimal(change[f"{field}_change"]) for change in changes)
            assert total == Decimal(changes[-1][field]) == Decimal(shown(money(row, field)))
        for before, after in pairwise(changes):
            assert before["sequence"] < after["sequence"]
        explained += len(changes)
    assert explained > 100


def test_an_explanation_names_what_happened(world, tmp_path, capsys):
    flow = Flow(8)
    deals = updates = 0
    seen = {}
    for _ in range(2000):
        command, time_ns = flow.next()
        if world.apply(command, b"{}" if command["kind"] == Kind.UPDATE_BALANCE else b"", time_ns):
            for event in world.replica.drain_events():
                if event["kind"] == EventKind.DEAL:
                    seen[int(event["deal_id"])] = event
    code, result = tool(world, tmp_path, "explain", 3, "USD")
    for change in result["changes"]:
        updates += change["request"] == "balance.update" and "business_id" in change
        for deal in change.get("deals", ()):
            event = seen[deal["deal"]]
            name = "ask" if deal["side"] == "sell" else "bid"
            assert event[f"{name}_user_id"] == 3 and event[f"{name}_order_id"] == deal["order"]
            deals += 1
    assert code == 0 and deals > 5 and updates > 2
    out = capsys.readouterr().out
    assert "balance.update" in out and "order.put_limit order" in out and "deal " in out


def test_a_balance_from_a_later_record_on_begins_with_what_was_there(world, tmp_path, capsys):
    world.run(Flow(9), 1500)
    code, whole = tool(world, tmp_path, "explain", 3, "USD")
    start = whole["changes"][5]["sequence"]
    capsys.readouterr()
    code, part = tool(world, tmp_path, "explain", 3, "USD", "--from", start)
    assert code == 0 and part["changes"] == whole["changes"][5:]
    assert f"before sequence {start:,}: available {whole['changes'][4]['available']}" in capsys.readouterr().out


def test_what_is_not_there_is_refused_in_one_sentence(world, tmp_path, capsys):
    world.run(Flow(10), 100)
    assert tool(world, tmp_path, "explain", 77, "USD")[0] == 1
    assert "user 77 had no USD" in capsys.readouterr().err
    for arguments in (("audit",), ("journal", "stat"), ("explain", "1", "USD"), ("snapshot",)):
        assert cli.main([*arguments, "--data", str(tmp_path / "nothing")]) == 1
        assert str(tmp_path / "nothing") in capsys.readouterr().err
