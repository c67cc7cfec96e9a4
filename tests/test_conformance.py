"""Conformance: every recorded answer of what is built, through real sockets and all processes; and the command."""
import json

import pytest

from shm.segments import CounterWord
from tests.commands import exchange
from tests.launched import ROOT
from tools import conformance, local_exchange
from tools.client import Client
from tools.conformance import Result, difference, read_deviations, read_recording, replay_line
from tools.report import Failed

RECORDINGS = ROOT / "tests" / "conformance" / "http"
BUILT_LINES = 10_926           # that name none of the ten methods of history and market data
NOT_BUILT_LINES = 4_209
Q12 = "q12_prec_zero_everywhere.jsonl"
Q12_LINE = 23


def test_every_recorded_answer_is_given_again(tmp_path):
    ended = exchange(tmp_path / "json", "conformance", RECORDINGS)
    assert ended.code == 0, ended.out + ended.error
    summary = ended.document
    assert summary["compared"] >= BUILT_LINES
    assert summary["compared"] + summary["not_built"] == BUILT_LINES + NOT_BUILT_LINES
    assert summary["first_difference"] is None
    assert [(deviation["line"], deviation["meant"]["params"][3]) for deviation in summary["deviations"]] == [
        (Q12_LINE, 119)]
    assert summary["equal"] == summary["compared"] - 1
    assert len(summary["files"]) == len(list(RECORDINGS.glob("*.jsonl"))) == 35
    for file in summary["files"]:
        assert file["compared"] == file["equal"] + len(file["deviations"]) and file["problem"] is None


def test_a_wrong_answer_is_found_and_told_with_its_line(tmp_path):
    # given two recordings, one with a balance that the exchange will not show
    recording = (RECORDINGS / "q09_repeat_after_restart.jsonl").read_text(encoding="utf-8").splitlines()
    number, line = next((number, json.loads(text)) for number, text in enumerate(recording, 1)
                        if '"balance.query"' in text)
    shown = next(iter(line["response"]["result"].values()))
    shown["available"] = "12345"
    recording[number - 1] = json.dumps(line)
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "altered.jsonl").write_text("\n".join(recording), encoding="utf-8")
    (folder / "below").mkdir()
    (folder / "below" / "not_taken.jsonl").write_text("not a recording", encoding="utf-8")
    # when they are replayed
    ended = exchange(tmp_path / "json", "conformance", folder, RECORDINGS / "h01_lists.jsonl", "--jobs", "2")
    # then that answer is the difference, and all others are equal
    assert ended.code == 1
    altered, lists = ended.document["files"]
    assert altered["equal"] == altered["compared"] - 1 and altered["differences"] == 1
    assert lists["equal"] == lists["compared"] == 82
    first = ended.document["first_difference"]
    assert first == altered["first_difference"] and first["line"] == number
    assert first["file"] == str(folder / "altered.jsonl") and first["request"] == line["request"]
    assert 'expected "12345"' in first["difference"] and "available" in first["difference"]
    assert f"altered.jsonl line {number}: " in ended.out


def test_killed_parts_come_back_with_all_that_was_answered(tmp_path):
    settings = read_recording(RECORDINGS / "h01_lists.jsonl").settings
    with local_exchange.running(tmp_path / "data", local_exchange.private(settings)) as running, \
            Client(running.url) as client:
        client.balance_update(1, "BTC", "deposit", 1, 5)
        for part in ("matcher", "journaler", "gateway-0"):
            started = int(running.page(part)[CounterWord.STARTED_NS])
            running.restart(part)
            assert running.page(part)[CounterWord.STARTED_NS] > started
            assert client.balance_query(1, "BTC") == {"BTC": (5, 0)}


# Comparing.

ORDER = {"error": None, "result": {"id": 1, "ctime": 1.5, "left": "0e-8"}, "id": 7}


@pytest.mark.parametrize("expected, got, words", [
    (ORDER, {"id": 7, "result": {"left": "0e-8", "ctime": 99, "id": 1}, "error": None}, None),  # a time, and the order
    (ORDER, {**ORDER, "result": {"id": 1, "ctime": "1.5", "left": "0e-8"}}, '.result.ctime: expected 1.5, got "1.5"'),
    (ORDER, {**ORDER, "result": {"id": 1, "ctime": 1.5, "left": "0"}}, '.result.left: expected "0e-8", got "0"'),
    (ORDER, {**ORDER, "result": {"id": 1, "ctime": 1.5}}, ".result: left is missing"),
    (ORDER, {**ORDER, "result": {**ORDER["result"], "data": 1}}, ".result: data is too much: 1"),
    (ORDER, {**ORDER, "id": "7"}, '.id: expected 7, got "7"'),
    (ORDER, [], "answer: expected {"),
    ({"error": {"code": 1}}, {"error": {"code": 1, "data": {"limit": 5}}}, None),  # details for people
    ({"error": {"code": 1}}, {"error": {"code": 1, "reason": "x"}}, ".error: reason is too much"),
    ({"error": {"code": 1, "data": 1}}, {"error": {"code": 1}}, ".error: data is missing"),
    ([1, [2]], [1, [3]], "[1][0]: expected 2, got 3"),
    ([1], [1, 2], "expected 1 elements, [1], got 2, [1, 2]"),
    (1, 1.0, None),
    (1, True, "expected 1, got true"),
    (0, False, "expected 0, got false"),
    (None, 0, "expected null, got 0"),
    ("", "", None),
])
def test_the_first_difference_is_told(expected, got, words):
    found = difference(expected, got, {"ctime"})
    assert (found is None) == (words is None)
    assert words is None or words in found


def test_where_only_types_are_compared_values_may_differ():
    assert difference({"a": [1, 2], "b": "x"}, {"a": [5], "b": "y"}, types_only=True) is None
    assert "got null" in difference({"a": [1]}, {"a": [None]}, types_only=True)


# Lines.

class Server:
    """In place of an exchange and of its client: it answers with what is recorded, and remembers what it was sent."""

    def __init__(self, *answers):
        self.answers, self.sent, self.done = list(answers), [], []

    def send(self, body, verb, path, headers):
        self.sent.append((body, verb, path, headers))
        return self.answers.pop(0)

    def restart(self, name):
        self.done.append(name)

    def take_snapshot(self):
        self.done.append("snapshot")

    def close(self):
        pass


def replayed(line, *answers, file=RECORDINGS / Q12, number=Q12_LINE):
    result, server = Result(file), Server(*answers)
    replay_line(result, server, server, number, line, (), read_deviations())
    return result, server


def recorded(name, number):
    return dict(read_recording(RECORDINGS / name).lines)[number]


REPEATED = (200, b'{"error": {"code": 10, "message": "repeat update"}, "result": null, "id": 22}')


def test_a_deviation_is_sent_as_it_was_meant_and_does_not_count_as_equal():
    result, server = replayed(recorded(Q12, Q12_LINE), REPEATED)
    assert json.loads(server.sent[0][0])["params"] == [3, "PTS", "d", 119, "5", {}]
    assert (result.compared, result.equal, len(result.deviations), result.is_well) == (1, 0, 1, True)
    deviation = result.deviations[0]
    assert deviation["line"] == Q12_LINE and deviation["request"]["params"][3] == 120 and "119" in deviation["proof"]


@pytest.mark.parametrize("change", [
    {"file": RECORDINGS / "other.jsonl"}, {"number": Q12_LINE + 1},
    {"line": {"request": {"id": 22, "method": "balance.update", "params": [3, "PTS", "d", 121, "5", {}]}}},
])
def test_a_deviation_is_applied_to_nothing_else(change):
    line = {**recorded(Q12, Q12_LINE), **change.pop("line", {})}
    result, server = replayed(line, REPEATED, **change)
    assert json.loads(server.sent[0][0]) == line["request"]
    assert (result.equal, result.deviations) == (1, [])


def test_a_deviation_that_is_answered_otherwise_is_a_difference():
    result, _server = replayed(recorded(Q12, Q12_LINE), (200, b'{"error": null, "result": {}, "id": 22}'))
    assert (result.compared, result.equal, result.deviations, result.is_well) == (1, 0, [], False)


def test_every_deviation_stands_in_its_recording():
    assert read_deviations()
    for (name, number), deviation in read_deviations().items():
        assert recorded(name, number)["request"] == deviation["request"] != deviation["meant"]


def test_what_is_not_built_is_counted_and_not_sent():
    line = {"request": {"id": 1, "method": "market.last", "params": []}, "status": 200, "response": {}}
    result, server = replayed(line)
    assert (result.not_built, result.compared, server.sent) == (1, 0, [])


def test_a_malformed_request_is_sent_as_it_stands():
    line = {"request": '{"id":1,', "status": 400, "response": "", "verb": "PUT", "path": "/x?y", "headers": {"A": "b"}}
    result, server = replayed(line, (400, b""))
    assert server.sent == [(b'{"id":1,', "PUT", "/x?y", {"A": "b"})]
    assert (result.compared, result.equal) == (1, 1)


def test_a_connection_closed_without_an_answer_has_status_0():
    line = {"request": "x", "status": 400, "response": ""}
    assert "expected 400, got no answer" in replayed(line, (0, b""))[0].first_difference["difference"]
    assert replayed({**line, "status": 0}, (0, b""))[0].equal == 1


def test_the_present_time_is_filled_in(monkeypatch):
    monkeypatch.setattr(conformance.time, "time", lambda: 1000.5)
    line = {"request": {"id": 1, "method": "x", "params": [{"$now": -60}, [{"$now": 5}], {"a": 1}]}, "status": 200,
            "response": {}}
    _result, server = replayed(line, (200, b"{}"))
    assert json.loads(server.sent[0][0])["params"] == [940, [1005], {"a": 1}]


@pytest.mark.parametrize("line, done", [
    ({"restart": "matchengine"}, ["matcher"]), ({"restart": "journaler"}, ["journaler"]),
    ({"restart": "readhistory"}, []), ({"snapshot": "matchengine"}, ["snapshot"]), ({"wait": 60}, []),
    ({"align": 60}, []), ({"note": "x"}, []),
])
def test_instructions(line, done):
    result, server = replayed(line)
    assert server.done == done
    assert (result.compared, result.not_built) == (0, 0)


META = json.dumps({"meta": {"config": {"assets": [{"name": "A", "prec_save": 8, "prec_show": 8}], "markets": []}}})


@pytest.mark.parametrize("text, words", [
    ("", "line 1: a recording begins with a meta line"),
    ('{"request": {}, "status": 200, "response": {}}', "line 1: a recording begins with a meta line"),
    ('{"meta": {"config": {"assets": []}}}', "line 1: its config cannot be used"),
    (META + "\n{", "line 2: not JSON"),
    (META + "\n[]", "line 2: not a JSON object"),
    (META + '\n\n{"connect": "a"}', "line 3: this is a WebSocket recording"),
    (META + '\n{"request": {}, "status": 200}', "line 2: response unknown or missing in a request line"),
    (META + '\n{"request": {}, "status": 200, "response": {}, "verbs": 1}', "line 2: verbs unknown"),
    (META + '\n{"request": {}, "status": 200, "response": {}, "compare": "x"}', "line 2: compare is 'x'"),
    (META + '\n{"restart": "everything"}', "line 2: restarts 'everything'; known are matchengine"),
    (META + '\n{"pause": 1}', "line 2: neither a request nor an instruction"),
])
def test_what_is_no_recording_is_told_with_its_line(tmp_path, text, words):
    path = tmp_path / "x.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Failed) as told:
        read_recording(path)
    assert f"{path} {words}" in str(told.value)


def test_a_folder_gives_its_own_recordings_and_each_file_once(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.json", "below/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = conformance.find_recordings([tmp_path, tmp_path / "a.jsonl", tmp_path / "c.json"])
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl", "c.json"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failed, match="empty has no recordings"):
        conformance.find_recordings([tmp_path / "empty"])
