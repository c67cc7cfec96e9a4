"""Real recordings: what the exchange makes of them agrees with what was published, in process and over HTTP.

The files are not in the repository: `order_flow.recorded` tells where they are looked for.
"""
import hashlib

import pytest

from shm import configuration
from tests.commands import exchange
from tools import local_exchange, order_flow
from tools.order_flow import BITSTAMP, COINBASE
from tools.replay import SETTINGS

SHA256 = {
    BITSTAMP: "4dc3dcd18f02938374f941612ccef5cbbec1dc2f2dd580d5de4519c7d86e01dc",
    COINBASE: "4b1a88d1c4382298b4ad3452c756dcc7017c1f367f016ce6865df29c740a485a",
}


def recording(name):
    path = order_flow.recorded(name)
    if not path.exists():
        pytest.skip(f"{path} is not there: EXCHANGE_RECORDED_DATA names the folder that has it")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name], f"{path} is another recording"
    return path


def test_the_bitstamp_flow_in_process_agrees_as_far_as_it_can(tmp_path):
    path = recording(BITSTAMP)
    ended = exchange(tmp_path / "json", "replay", path)
    assert ended.code == 0, ended
    from_empty, in_advance = ended.document["runs"]
    # from an empty book
    assert (from_empty["trades"], from_empty["trades_equal"]) == (517, 508)
    assert (from_empty["best_equal"], from_empty["pictures"]) == (4953, 5011)
    assert from_empty["cancels_of_no_order"] == 188
    # with the orders put in advance that were there before the recording began
    assert in_advance["in_advance"] == 160
    assert (in_advance["trades"], in_advance["trades_equal"], in_advance["trades_published"]) == (519, 509, 575)
    assert in_advance["best_equal"] == 4971
    assert in_advance["top_equal"] == 4526
    assert in_advance["cancels_of_no_order"] == 30
    # and money is exact
    assert ended.document["problems"] == []


def test_the_coinbase_book_loads_and_its_depth_is_right_at_every_merge(tmp_path):
    ended = exchange(tmp_path / "json", "replay", recording(COINBASE))
    assert ended.code == 0, ended
    figures, = ended.document["runs"]
    assert figures["orders"] == figures["accepted"] == 110_606
    assert figures["depths"] == figures["depths_equal"] == 5 * 2
    assert figures["problems"] == []


def test_the_bitstamp_flow_over_http_agrees_as_far_as_it_can(tmp_path):
    path = recording(BITSTAMP)
    # the figures do not depend on when the disk is flushed
    settings = local_exchange.private(configuration.parse({**SETTINGS, "journal": {"sync": "none"}}))
    with local_exchange.running(tmp_path / "data", settings) as running:
        ended = exchange(tmp_path / "json", "feed", path, "--url", running.url)
    assert ended.code == 0, ended
    figures = ended.document
    assert (figures["in_advance"], figures["trades"], figures["trades_equal"]) == (160, 519, 509)
    assert figures["best_equal"] == 4971
    assert figures["top_equal"] == 4526
    assert figures["problems"] == []
