"""A configuration adds to what the journal has; one that contradicts it is refused whole, in one list."""
import pytest

from pipeline import seeding
from pipeline.replica import Replica
from pipeline.seeding import Contradiction
from shm import configuration
from shm.records import Kind, Result

ASSETS = [{"name": "BTC", "prec_save": 20, "prec_show": 8}, {"name": "USDT", "prec_save": 20, "prec_show": 8}]
MARKET = {"name": "BTCUSDT", "stock": "BTC", "money": "USDT", "stock_prec": 8, "money_prec": 2, "fee_prec": 4,
          "min_amount": "0.001"}
LIMITS = {"orders_max": 100, "levels_max": 100, "balances_max": 100, "assets_max": 4, "markets_max": 4}
ETH = {"name": "ETH", "prec_save": 20, "prec_show": 8}
ETHUSDT = {**MARKET, "name": "ETHUSDT", "stock": "ETH"}


def configured(assets=ASSETS, markets=(MARKET,), **limits):
    return configuration.parse({"assets": list(assets), "markets": list(markets), "limits": {**LIMITS, **limits}})


@pytest.fixture
def replica():
    """A core that has applied the first configuration, with room for larger ones."""
    made = Replica(seeding.limits_of(configured(orders_max=1000, assets_max=16)))
    apply(made, configured())
    return made


def apply(replica, settings):
    for command, payload in seeding.commands(settings, replica.state):
        assert replica.apply(command, payload)["result"] == Result.OK


def kinds(settings, replica):
    return [Kind(command["kind"]) for command, _payload in seeding.commands(settings, replica.state)]


def test_what_the_journal_has_is_not_defined_again(replica):
    assert kinds(configured(), replica) == []
    assert kinds(configured(markets=[{**MARKET, "min_amount": "0.00100"}]), replica) == []  # the same number


def test_what_is_new_is_defined_capacities_first(replica):
    settings = configured(assets=[*ASSETS, ETH], markets=[MARKET, ETHUSDT], orders_max=200)
    assert kinds(settings, replica) == [Kind.SET_LIMITS, Kind.ADD_ASSET, Kind.ADD_MARKET]
    apply(replica, settings)
    assert seeding.asset_names(replica.state) == ["BTC", "USDT", "ETH"]
    assert seeding.market_names(replica.state) == ["BTCUSDT", "ETHUSDT"]


def test_what_is_left_out_stays(replica):
    assert kinds(configured(markets=[]), replica) == []


def test_contradictions_stand_in_one_list_with_key_and_both_values_and_nothing_is_defined(replica):
    apply(replica, configured(assets=[*ASSETS, ETH], markets=[MARKET, ETHUSDT]))
    settings = configured(
        assets=[{**ASSETS[0], "prec_show": 6}, ASSETS[1], {**ETH, "name": "NEW"}, {**ETH, "name": "NEWER"}],
        markets=[{**MARKET, "money_prec": 3, "min_amount": "0.01"}, {**ETHUSDT, "stock": "NEW"}])
    with pytest.raises(Contradiction) as refusal:
        seeding.commands(settings, replica.state)
    assert refusal.value.problems == [
        "limits.assets_max = 4: the journal needs at least 5",
        'assets "BTC" prec_show = 6: the journal has 8, which cannot change',
        'markets "BTCUSDT" money_prec = 3: the journal has 2, which cannot change',
        'markets "BTCUSDT" min_amount = "0.01": the journal has "0.001", which cannot change',
        'markets "ETHUSDT" stock = "NEW": the journal has "ETH", which cannot change',
    ]
    assert str(refusal.value).startswith("the configuration contradicts the journal; restore the values that it has")


def test_a_capacity_below_what_is_in_use_is_told(replica):
    apply(replica, configured(assets=[*ASSETS, ETH]))
    with pytest.raises(Contradiction, match=r"limits\.assets_max = 2: the journal needs at least 3"):
        seeding.commands(configured(assets_max=2), replica.state)
