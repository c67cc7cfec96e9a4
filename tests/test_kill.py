"""Processes killed under load: nothing that was answered is lost, nothing is done twice. And the audit that says so is
shown everything that it is there to find.
"""
import json
from collections import defaultdict
from copy import copy
from dataclasses import replace

import pytest

from tools import cli, local_exchange
from tools.kill_audit import Audit
from tools.kill_test import IN_FLIGHT_MIN, KINDS, kill_test, kill_under_load, lines_of, settings_of

RUNS = [  # (kills, sync, tiny rings, gateways, binary gateways, seed): a hundred and more in all
    (36, "always", False, 1, 0, 11),
    (24, "always", True, 1, 1, 12),
    (25, "interval", True, 2, 0, 13),
    (15, "none", False, 1, 1, 14),
]


@pytest.fixture(scope="module", autouse=True)
def kernels():
    local_exchange.prepare_kernels()


@pytest.mark.parametrize("kills, sync, tiny_rings, gateways, binary_gateways, seed", RUNS)
def test_killed_processes_lose_and_double_nothing(
        kills, sync, tiny_rings, gateways, binary_gateways, seed, tmp_path):
    result = kill_test(tmp_path / "data", kills=kills, seed=seed, sync=sync, tiny_rings=tiny_rings, gateways=gateways,
                       binary_gateways=binary_gateways)
    print("\n".join(lines_of(result)))
    assert (result["lost"], result["doubled"], result["problems"]) == (0, 0, 0), result["story"]
    assert result["digest_equal"] and result["money_exact"] and result["is_well"]
    assert result["kills"] == kills and all(kill["in_flight"] >= IN_FLIGHT_MIN for kill in result["per_kill"])
    killed = {name.partition("-")[0] for kill in result["per_kill"] for name in kill["processes"]}
    assert killed == {*KINDS, *(["binary"] if binary_gateways else [])}
    assert any(len(kill["processes"]) > 1 for kill in result["per_kill"])
    assert any(kill["executed_but_unanswered"] for kill in result["per_kill"]), "no kill came between disk and client"


def test_a_hundred_kills_and_more():
    assert sum(kills for kills, *_ in RUNS) >= 100


def test_the_command_writes_what_scripts_read(tmp_path):
    path = tmp_path / "result.json"
    assert cli.main(["kill-test", "--kills", "2", "--seed", str(2**62 + 5), "--only", "journaler,gateway", "--data",
                     str(tmp_path / "data"), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert (result["lost"], result["doubled"], result["digest_equal"], result["money_exact"]) == (0, 0, True, True)
    assert [set(kill) for kill in result["per_kill"]] == 2 * [{
        "processes", "recovering", "frozen", "in_flight", "answered", "executed_but_unanswered", "seconds"}]
    assert {name for kill in result["per_kill"] for name in kill["processes"]} <= {"journaler", "gateway-0"}


@pytest.mark.parametrize("arguments, words", [
    (["--only", "gateway,postman"],
     "postman cannot be killed; known are gateway, matcher, journaler, snapshotter, watcher"),
    (["--kills", "-1"], "-1 must be a whole number from 0 on"),
    (["--gateways", "0"], "0 must be a whole number from 1 on"),
])
def test_a_wrong_option_is_named(arguments, words, capsys):
    with pytest.raises(SystemExit):
        cli.main(["kill-test", *arguments])
    assert words in capsys.readouterr().err


# --- the audit finds what it is there to find

@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    settings = settings_of("always", False, 1)
    with local_exchange.running(tmp_path_factory.mktemp("audited") / "data", settings) as exchange:
        return kill_under_load(exchange, kills=3, seed=21, seconds=4)


class Forgery:
    """Evidence that can be changed, without a change of the original."""

    def __init__(self, evidence):
        self.copies = {operation: copy(operation) for operation in evidence.operations}
        kills = [replace(kill, operations=tuple(map(self.copies.get, kill.operations))) for kill in evidence.kills]
        self.evidence = replace(evidence, operations=list(self.copies.values()), kills=kills)

    def all(self, method):
        """The operations with a success."""
        return [operation for operation in self.evidence.operations
                if operation.method == method and operation.reading()[0] is not None]

    def some(self, method):
        return self.all(method)[0]

    def early_and_last(self, method):
        """Two reads of one user that certainly show different states: the second comes when nobody writes any more, and
        shows an order or a deposit that was sent after the first was answered.

        Beside a write that is not answered yet, a read may show the state before it or the one after it.
        """
        reads = defaultdict(list)
        for operation in self.all(method):
            reads[operation.params[:2]].append(operation)
        pairs = [(same[0], same[-1]) for same in reads.values() if self.has_news(same[0], same[-1])]
        return max(pairs, key=lambda pair: pair[1].sent_at)

    def has_news(self, early, last):
        if early.method == "balance.query":
            return seen(early).keys() == seen(last).keys() and any(
                sent.sent_at > early.answered_at and sent.params[0] == last.params[0] and sent.params[1] in seen(last)
                for sent in self.all("balance.update"))
        early_ids, last_ids = ({record["id"] for record in seen(read)["records"]} for read in (early, last))
        return bool(last_ids - early_ids) and seen(last)["total"] == len(last_ids)

    def audit(self):
        return Audit(self.evidence)


@pytest.fixture
def forgery(evidence):
    return Forgery(evidence)


def edit_answer(operation, **members):
    answer = json.loads(operation.body)
    answer["result"].update(members)
    operation.body = json.dumps(answer).encode()


def seen(read):
    """What a read shows of the state: the members of its result but those that repeat what was asked."""
    result = json.loads(read.body)["result"]
    return {name: value for name, value in result.items() if name not in ("limit", "offset")}


def texts(audit):
    return " | ".join(tale["what"] for tale in audit.story)


def test_the_audit_finds_nothing_where_nothing_is_wrong(forgery):
    audit = forgery.audit()
    assert audit.is_well and audit.story == []
    assert audit.summary()["records"] == forgery.evidence.live[0]


def test_an_answer_without_a_record_is_a_loss_with_its_story(forgery):
    operation = forgery.some("order.put_limit")
    operation.params = (*operation.params[:-1], "never journaled")
    audit = forgery.audit()
    assert audit.lost == 1 and not audit.is_well
    tale = next(tale for tale in audit.story if tale["what"].startswith("answered, but not in the journal"))
    assert tale["operation"] == {"method": "order.put_limit", "params": list(operation.params)}
    assert tale["answered"].startswith('HTTP 200 {"error": null') and tale["journal"] == []
    assert "in the journal, but nobody asked for it" in texts(audit)


def test_one_key_with_two_successes_was_executed_twice(forgery):
    operation = forgery.some("balance.update")
    again = copy(operation)
    again.sent_at = again.answered_at = forgery.evidence.operations[-1].answered_at + 1
    forgery.evidence.operations.append(again)
    audit = forgery.audit()
    assert audit.doubled == 1 and "executed 2 times" in texts(audit)
    assert "offset" in audit.story[0]["journal"][0] and audit.story[0]["operation"]["method"] == "balance.update"


def test_a_refused_operation_may_not_be_in_the_journal(forgery):
    operation = forgery.some("order.put_limit")
    operation.body = b'{"error": {"code": 10, "message": "balance not enough"}, "result": null, "id": 1}'
    assert "refused, but in the journal" in texts(forgery.audit())


def test_a_repeated_balance_update_must_have_been_applied(forgery):
    operation = forgery.some("balance.update")
    operation.params = (*operation.params[:3], 2**40, *operation.params[4:])
    operation.body = b'{"error": {"code": 10, "message": "repeat update"}, "result": null, "id": 1}'
    assert forgery.audit().lost == 1


def test_an_unanswered_operation_may_be_in_the_journal_once_or_not_at_all(forgery):
    for method in ("order.put_limit", "balance.update", "order.cancel"):
        operation = forgery.some(method)
        operation.status, operation.body = 0, b""
    operation = copy(operation)
    operation.params = (*operation.params[:2], 10**9)
    operation.sent_at, operation.answered_at = operation.sent_at + 0.25, operation.answered_at + 0.5
    forgery.evidence.operations.append(operation)
    assert forgery.audit().is_well


@pytest.mark.parametrize("members", [{"id": 10**6}, {"user": 999}, {"source": "another"}, {"deal_fee": "0.5"}])
def test_an_answer_that_belongs_to_another_operation_is_found(forgery, members):
    edit_answer(forgery.some("order.put_limit"), **members)
    assert "the answer says" in texts(forgery.audit())


def test_another_amount_in_the_journal_than_was_sent_is_found(forgery):
    operation = forgery.some("order.put_limit")
    operation.params = (*operation.params[:3], "0.777", *operation.params[4:])
    assert "another side or amount" in texts(forgery.audit())


def test_a_changed_deposit_does_not_add_up(forgery):
    operation = forgery.some("balance.update")
    operation.params = (*operation.params[:4], "1000000.00000001", operation.params[5])
    audit = forgery.audit()
    assert not audit.money_exact and "money of" in texts(audit) and "another change" in texts(audit)


@pytest.mark.parametrize("method", ["balance.query", "order.pending"])
def test_a_read_that_shows_an_older_state_than_was_answered_is_found(forgery, method):
    early, last = forgery.early_and_last(method)
    edit_answer(last, **seen(early))
    assert "shows no state from sequence" in texts(forgery.audit())


@pytest.mark.parametrize("method", ["balance.query", "order.pending"])
def test_a_read_that_shows_what_was_written_after_it_is_found(forgery, method):
    early, last = forgery.early_and_last(method)
    edit_answer(early, **seen(last))
    assert "shows no state from sequence" in texts(forgery.audit())


def test_a_write_that_stands_before_one_that_was_answered_before_is_found(forgery):
    operation = forgery.all("order.put_limit")[-1]  # few reads show what it did: the story has room for all
    operation.sent_at = forgery.evidence.operations[-1].answered_at + 1
    operation.answered_at = operation.sent_at + 1
    assert "stands before sequence" in texts(forgery.audit())


@pytest.mark.parametrize("word", range(3))
def test_another_state_of_the_live_matcher_is_found(forgery, word):
    live = list(forgery.evidence.live)
    live[word] += 1
    audit = Audit(replace(forgery.evidence, live=tuple(live)))
    assert not audit.digest_equal and not audit.is_well and "the matcher stopped with" in texts(audit)


def test_an_operation_that_nobody_ever_answers_is_told(forgery):
    operation = forgery.some("order.put_limit")
    audit = Audit(replace(forgery.evidence, unfinished=[operation]))
    assert not audit.is_well and "never answered, though all processes ran" in texts(audit)




def test_a_process_that_ended_by_itself_is_told(forgery):
    line = {"time": 0, "process": "matcher", "pid": 7, "text": "Broken: core defect 3 at sequence 9"}
    killed = {"time": 0, "process": "watcher", "pid": 8, "text": "matcher (process 7) died 3 s after its start"}
    log = forgery.evidence.exchange.data / "log" / "fatal.log"
    before = log.read_text(encoding="utf-8")
    try:
        log.write_text(f"{json.dumps(killed)}\n{json.dumps(line)}\n", encoding="utf-8")
        audit = forgery.audit()
    finally:
        log.write_text(before, encoding="utf-8")
    assert [tale["what"] for tale in audit.story] == [
        "a process ended by itself, matcher (process 7): Broken: core defect 3 at sequence 9"]
