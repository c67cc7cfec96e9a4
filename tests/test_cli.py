"""The console command: what it says, what it returns, and that it leaves nothing behind."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shm import role_lock
from shm.process import memory_id
from shm.records import Side
from tests.commands import exchange
from tests.launched import ROOT, free_port, wait_for
from tests.test_order_flow import LOG
from tools import cli, local_exchange
from tools.client import Client
from tools.conformance import read_recording
from tools.load import percentile

RECORDINGS = ROOT / "tests" / "conformance" / "http"
NOBODY = f"http://127.0.0.1:{free_port()}"


def test_no_command_imports_a_kernel_before_it_runs():
    asked = "import sys, tools.cli; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], cwd=ROOT).returncode == 0


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for command in ("replay", "feed", "conformance"):
        assert f"    {command}" in said


@pytest.mark.parametrize("arguments, words", [
    ([], "required: COMMAND"),
    (["replays"], "invalid choice: 'replays'"),
    (["conformance"], "required: PATH"),
    (["conformance", "x", "--jobs", "0"], "0 must be a whole number from 1 on"),
    (["feed", "synthetic", "--rate", "0"], "0 must be a number above 0"),
    (["feed", "synthetic", "--count", "1.5"], "1.5 must be a whole number above 0"),
    (["replay", "x", "--json", "/no/such/folder/x"], "/no/such/folder/x cannot be written"),
])
def test_wrong_usage_is_told_with_exit_code_2(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments, words", [
    (["replay", "nowhere.log"], "nowhere.log is not there"),
    (["replay", __file__], f"{__file__} line 1: not `time event JSON` of a Bitstamp log"),
    (["feed", "nowhere.log"], "nowhere.log is not there"),
    (["feed", "synthetic", "--url", NOBODY], f"{NOBODY} does not answer market.list"),
    (["feed", "synthetic", "--url", "localhost:8080"], "localhost:8080 is no address of an exchange"),
    (["feed", "synthetic", "--url", "http://localhost:port"], "http://localhost:port is no address of an exchange"),
    (["conformance", "nowhere"], "nowhere is not there"),
    (["conformance", str(RECORDINGS.parent)], f"{RECORDINGS.parent} has no recordings"),
    (["conformance", __file__], f"{__file__} line 1: not JSON"),
    (["conformance", str(RECORDINGS / "h01_lists.jsonl"), "--deviations", "nowhere.json"],
     "the deviations nowhere.json cannot be read"),
    (["conformance", str(RECORDINGS / "h01_lists.jsonl"), "--deviations", __file__], "is no list of deviations"),
])
def test_what_cannot_be_done_is_one_sentence_and_exit_code_1(capsys, arguments, words):
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main(arguments) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert said.startswith("exchange: ") and said.count("\n") == 1
    assert words in said


def test_a_failure_replaces_the_result_of_an_earlier_run(tmp_path, capsys):
    result = tmp_path / "result.json"
    result.write_text('{"rate": 1}')
    assert cli.main(["replay", "nowhere.log", "--json", str(result)]) == 1
    assert "nowhere.log is not there" in json.loads(result.read_text())["failed"]
    assert "nowhere.log is not there" in capsys.readouterr().err


@pytest.mark.parametrize("share, expected", [(0.5, 2), (0.51, 3), (0.75, 3), (0.99, 4), (0.001, 1), (1, 4)])
def test_percentiles_are_values_that_were_measured(share, expected):
    assert percentile([1, 2, 3, 4], share) == expected
    assert percentile([7], share) == 7
    assert percentile([], share) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The client of a running exchange."""
    settings = read_recording(RECORDINGS / "h01_lists.jsonl").settings
    data = tmp_path_factory.mktemp("fed") / "data"
    with local_exchange.running(data, local_exchange.private(settings)) as running, Client(running.url) as client:
        yield client


def test_a_log_fed_over_http_agrees_as_in_process_and_its_deposits_are_made_once(tmp_path, served):
    path = tmp_path / "flow.log"
    path.write_text(LOG, encoding="utf-8")
    replayed = exchange(tmp_path / "json", "replay", path)
    assert replayed.code == 0, replayed
    in_process = replayed.document["runs"][1]
    totals = []
    for _ in range(2):
        fed = exchange(tmp_path / "json", "feed", path, "--url", served.url)
        assert fed.code == 0, fed
        for name in ("in_advance", "orders_and_cancels", "trades", "trades_equal", "trades_published", "pictures",
                     "best_equal", "top_equal", "cancels_of_no_order", "filled_but_held", "rejections", "problems"):
            assert fed.document[name] == in_process[name], name
        totals.append(served.asset_summary("USDT")[0].total_balance)
    assert totals[1] < totals[0]  # by the fees of the second time


def test_a_recording_is_not_fed_into_a_market_that_cannot_take_it(tmp_path, served):
    path = tmp_path / "flow.log"
    for market, text, words in (
            ("ETHUSDT", LOG, "market ETHUSDT keeps 4 decimals of amounts and 4 of prices, the recording has 8 and 2"),
            ("LTC", LOG, "the exchange has no market LTC; it has BTCUSDT, "),
            ("BTCUSDT", LOG.replace("1.50000000", "0.0005"), "below its min_amount 0.001, the recording has 0.0005")):
        path.write_text(text, encoding="utf-8")
        ended = exchange(tmp_path / "json", "feed", path, "--url", served.url, "--market", market)
        assert ended.code == 1 and words in ended.error and words in ended.document["failed"]
    served.balance_update(1, "EQ", "test", 1, 1)
    served.order_put_limit(1, "EQUSDT", Side.ASK, 1, 1, 0, 0, "test")
    path.write_text(LOG, encoding="utf-8")
    ended = exchange(tmp_path / "json", "feed", path, "--url", served.url, "--market", "EQUSDT")
    assert ended.code == 1 and "the book of market EQUSDT holds 1 orders" in ended.error


def test_a_synthetic_flow_is_fed_at_its_rate(tmp_path, served):
    ended = exchange(tmp_path / "json", "feed", "synthetic", "--url", served.url, "--market", "ETHBTC",
                     "--count", "600", "--rate", "400", "--connections", "4", "--seed", "7")
    assert ended.code == 0, ended
    figures = ended.document
    assert (figures["flow"], figures["market"], figures["requests"]) == ("synthetic", "ETHBTC", 600)
    assert 1.4 < figures["seconds"] < 20 and figures["rate"] <= 430
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"]
    assert sum(figures["rejections"].values()) < 200
    summary, = served.market_summary("ETHBTC")
    assert summary.ask_count + summary.bid_count > 50
    assert "requests 600" in ended.out


def test_a_command_that_is_told_to_end_leaves_nothing_behind(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.cli", "conformance", str(RECORDINGS / "r14_all_markets.jsonl")], cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        data = wait_for(lambda: next(tmp_path.glob("exchange-*/data"), None), "its data directory")
        wait_for(lambda: len(role_lock.holders(data)) >= 4, "its processes")
        name = f"exchange-{memory_id(data).hex[:12]}-*"
        assert list(Path("/dev/shm").glob(name))
        process.terminate()
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert process.stderr.read() == "exchange: interrupted\n"
    assert list(tmp_path.glob("exchange-*")) == list(Path("/dev/shm").glob(name)) == []
