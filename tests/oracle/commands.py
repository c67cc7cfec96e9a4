"""Random requests of all methods, from a seed: few users and few prices, so that everything meets everything, and now
and then a value that no sane client sends.
"""
import random
from dataclasses import dataclass

ASK, BID = 1, 2
USERS = (1, 2, 3, 4, 2**32 - 1)
FEES = ("0", "0.0005", "0.001", "0.002", "0.3", "0.9999", "-0", "0.00000000001", "-0.00000000001", "0.99999999999")
INTERVALS = ("0", "1", "0.1", "10", "0.01", "0.3", "7", "1e-8", "1e-30", "1e2", "123456789")
NOT_NUMBERS = (
    "NaN", "-NaN", "sNaN", "nan123", "inf", "-inf", "Infinity", "-infinity", "", " 1", "1 ", "1_0", "0x10", "1e", "e1",
    ".", "+", "--1", "1.2.3", "\u0661", "1,5", "1e1.5", 1, 1.5, 0, -1, None, True, [], {}, ["1"])
NUMBERS = (
    "0", "-0", "+0", "0.0", "-0.0", "0e9", "-1", "-1e-30", "1e-30", "1e-9", "9e-21", "1e29", "1e30", "-1e30", "1e400",
    "-1e400", "1e-400", "1e999999999999999999", "1e-999999999999999999", "9" * 40, "0." + "9" * 40, "1" + "0" * 29,
    "1" + "0" * 30, "1e18", "1000000000000000000", "1000000000000000000.00000001", "1000000000000000001", "-1e18",
    "999999999999999999", "9223372036854775807", "9223372036854775808", "92233720368547758.07", "92233720368547758.08",
    "92233720368.54775807", "92233720368.54775808", "922337203685477.5807", "922337203685477.5808",
    "9223372036854.775807", "1.", ".5", "+1", "1E2", "0.5", "1", "2", "1e0", "00001", "100", "0.00000001",
    "0.000000019", "1.000000000000000000001")
INTEGERS = (
    0, 1, 2, 3, -1, -2, 101, 102, 2**31, 2**32 - 1, 2**32, 2**32 + 1, -2**31, 2**63 - 1, -2**63, 1.0, "1", None, True,
    False, [], {}, 10**6, 5, 2**16 + 1, 257)
TEXTS = (
    "", "web", "x" * 30, "x" * 31, "\u00e9" * 15, "\u00e9" * 16, "x" * 32, "x" * 5000, "a\u0000b", "nul\u0000", '"\\',
    1, None, True, [], {})
NAMES = ("", "btcusdt", "BTC", "BTCUSDT", "NOPE", "BTC ", "BTCUSDT" * 10, "\u20bf", 1, None, True, [], {})
DETAILS = (
    {}, {"id": 5}, {"txid": "abc", "n": 1}, {"text": "y" * 8150}, {"text": "y" * 8192}, {"text": "\u00e9" * 4096}, [],
    None, "{}", 0)


@dataclass(frozen=True)
class Profile:
    """What a flow is made of: how often each method, and how large its numbers are."""
    name: str
    weights: dict
    wild: float = 0.02              # chance that a parameter is replaced by one that makes no sense
    huge: bool = False              # amounts and prices at the ends of their ranges
    users: tuple = USERS
    markets: int = 99               # how many of the configured ones
    deep: bool = False              # many price levels, asks mostly above bids


WRITES = {"order.put_limit": 40, "order.put_market": 12, "order.cancel": 18, "balance.update": 8}
READS = {
    "order.book": 3, "order.depth": 4, "order.pending": 3, "order.pending_detail": 3, "balance.query": 4,
    "asset.summary": 2, "market.summary": 2, "asset.list": 0.5, "market.list": 0.5, "order.finished": 0.1}
PROFILES = (
    Profile("everything", {**WRITES, **READS}),
    Profile("one market", {**WRITES, **READS}, markets=1),
    Profile("two users", {**WRITES, **READS}, users=(1, 2), markets=2),
    Profile("oneself", {**WRITES, **READS}, users=(7,), markets=2),
    Profile("thin books", {
        **READS, "order.put_limit": 10, "order.put_market": 40, "order.cancel": 10, "balance.update": 8}),
    Profile("cancels", {
        **READS, "order.put_limit": 40, "order.put_market": 3, "order.cancel": 60, "balance.update": 4}),
    Profile("deep books", {
        **READS, "order.put_limit": 80, "order.put_market": 4, "order.cancel": 15}, markets=2, deep=True),
    Profile("huge", {**WRITES, **READS, "balance.update": 20}, huge=True),
    Profile("huge in one market", {**WRITES, **READS, "balance.update": 20}, huge=True, markets=1),
    Profile("nonsense", {**WRITES, **READS, "no.such": 1, "": 1}, wild=0.25),
)


def random_config(chance):
    """Four assets and three markets between them, of any precisions that go together."""
    assets = [{"name": name, "prec_save": chance.choice((20, 20, 20, 18, 12, 8, 3))}
              for name in ("BTC", "ETH", "CNY", "PTS")]
    for asset in assets:
        asset["prec_show"] = chance.randint(0, asset["prec_save"])
    markets = []
    while len(markets) < 3:
        stock, money = chance.sample(assets, 2)
        stock_prec, money_prec, fee_prec = chance.randint(0, 18), chance.randint(0, 18), chance.choice((0, 1, 3, 4, 9))
        if stock_prec + money_prec + fee_prec <= money["prec_save"] and stock_prec + fee_prec <= stock["prec_save"]:
            markets.append({
                "name": f"{stock['name']}{money['name']}{len(markets)}", "fee_prec": fee_prec,
                "stock": {"name": stock["name"], "prec": stock_prec},
                "money": {"name": money["name"], "prec": money_prec},
                "min_amount": chance.choice(
                    ("0.001", "1", "0.01", "0.0100", "0.00000000000000000001", "2.5", "0.123456789012345"))})
    return {"assets": assets, "markets": markets}


class Flow:
    """Requests of one profile against one configuration. It looks at the reference's books, to cancel what rests."""

    def __init__(self, profile, config, reference, seed):
        self.profile, self.config, self.reference = profile, config, reference
        self.chance = random.Random(seed)
        self.markets = self.chance.sample(config["markets"], min(profile.markets, len(config["markets"])))
        self.methods, self.weights = list(profile.weights), list(profile.weights.values())
        self.makers = {
            "balance.update": self._update, "order.put_limit": self._limit, "order.put_market": self._market,
            "order.cancel": self._cancel, "order.book": self._book, "order.depth": self._depth,
            "order.pending": self._pending, "order.pending_detail": self._pending_detail, "balance.query": self._query,
            "asset.summary": self._asset_summary, "market.summary": self._market_summary,
        }

    def deposits(self):
        """What everybody begins with."""
        for asset in self.config["assets"]:
            for place, user in enumerate(self.profile.users):
                if self.profile.huge:
                    change = self.chance.choice(("1e17", "199999999999999999", "9e16", "3"))
                else:
                    change = self.chance.choice(("1000", "1000000", "10", "0.5", "5000"))
                yield "balance.update", [user, asset["name"], "begin", place, change, {}]

    def request(self):
        """The next (method, params)."""
        method = self.chance.choices(self.methods, self.weights)[0]
        make = self.makers.get(method)
        params = make() if make else []
        if params and self.chance.random() < self.profile.wild / 4:
            params = params[:-1] if self.chance.random() < 0.5 else [*params, self.chance.choice(INTEGERS)]
        return method, params

    # what parameters are made of

    def _or_wild(self, value, pool):
        return self.chance.choice(pool) if self.chance.random() < self.profile.wild else value

    def _user(self):
        return self._or_wild(self.chance.choice(self.profile.users), INTEGERS)

    def _side(self):
        return self._or_wild(self.chance.choice((ASK, BID)), INTEGERS)

    def _source(self):
        return self._or_wild(self.chance.choice(("web", "", "api \u20bf")), TEXTS)

    def _fee(self):
        return self._number(self.chance.choice(FEES))

    def _number(self, text):
        """A number's text, perhaps in another form, perhaps replaced."""
        if self.chance.random() < self.profile.wild:
            return self.chance.choice(NUMBERS if self.chance.random() < 0.6 else NOT_NUMBERS)
        form = self.chance.random()
        if form < 0.04:
            return f"+{text}" if text[0] not in "+-" else text
        if form < 0.08 and "e" not in text:
            return text + ("000" if "." in text else ".0") + self.chance.choice(("", "0000000000000001"))
        return text

    def _price(self, market, side):
        decimals = market["money"]["prec"]
        if self.profile.huge and self.chance.random() < 0.7:
            ticks = self.chance.choice((1, 2, 3, 10, 10**decimals, 10**9, 2**62, 2**63 - 1, 10**17, 10**8 + 1))
            return _text(ticks, decimals)
        step = self.chance.randint(-4, 4)
        if self.profile.deep and side in (ASK, BID):
            step = (abs(self.chance.randint(-5, 300)) - 2) * (1 if side == ASK else -1)
        return _text((1000 + step) * 10 ** min(max(decimals - 1, 0), 12), decimals)

    def _amount(self, market):
        decimals = market["stock"]["prec"]
        if self.profile.huge and self.chance.random() < 0.7:
            lots = self.chance.choice(
                (1, 2, 7, 10**9, 10**decimals, 2**63 - 1, 2**62, 10**18, 10**18 - 1, 3 * 10**17, 10**16))
            return _text(lots, decimals)
        form = self.chance.random()
        least = market.get("min_amount", "0.01")
        if form < 0.1:
            return least
        if form < 0.15:
            return _text(max(_lots(least, decimals) - 1, 0), decimals)
        if form < 0.6:
            return self.chance.choice(("1", "2", "0.5", "3", "0.25", "10"))
        return f"{self.chance.uniform(0, 3):.{decimals + 2}f}"

    def _any_market(self):
        return self.chance.choice(self.markets)

    def _name(self, market):
        return self._or_wild(market["name"], NAMES)

    def _order_id(self, market):
        """Mostly an order that rests here, and its owner."""
        book = self.reference.markets[market["name"]].book.by_id
        if book and self.chance.random() < 0.85:
            order = book[self.chance.choice(list(book))]
            return order.id, order.user
        last = self.reference.last_order_id
        return self.chance.choice((last, last + 1, 1, 2, 0, -1)), self._user()

    # the methods

    def _update(self):
        asset = self._or_wild(self.chance.choice(self.config["assets"])["name"], NAMES)
        business = self._or_wild(self.chance.choice(("deposit", "withdraw", "deposi")), TEXTS)
        business_id = self.chance.choice((self.chance.randrange(20), self.chance.randrange(2**40)))
        if self.profile.huge:
            change = self.chance.choice(
                ("1e17", "-1e17", "1e18", "-1e18", "500000000000000000", "-3", "7e17", "8e17"))
        else:
            change = self.chance.choice((
                "1", "-1", "100", "-100", "0.123456789123456789123", "-0.5", "1000", "0", "1e-8", "0.000000001",
                "-1e-12"))
        return [self._user(), asset, business, self._or_wild(business_id, INTEGERS), self._number(change),
                self._or_wild({}, DETAILS)]

    def _limit(self):
        market, side = self._any_market(), self._side()
        return [self._user(), self._name(market), side, self._number(self._amount(market)),
                self._number(self._price(market, side)), self._fee(), self._fee(), self._source()]

    def _market(self):
        market, side = self._any_market(), self._side()
        amount = self._amount(market)
        if side == BID and self.chance.random() < 0.7:
            amount = self.chance.choice(
                ("100", "250.123456789", "99.99", "0.1", "1000", "1e-8", "333.3333333333333333", "10"))
        return [self._user(), self._name(market), side, self._number(amount), self._fee(), self._source()]

    def _cancel(self):
        market = self._any_market()
        order_id, owner = self._order_id(market)
        user = owner if self.chance.random() < 0.9 else self._user()
        elsewhere = market if self.chance.random() < 0.95 else self._any_market()
        return [user, self._name(elsewhere), self._or_wild(order_id, INTEGERS)]

    def _offset(self):
        return self._or_wild(self.chance.choice((0, 0, 0, 1, 2, 5, 20)), INTEGERS)

    def _limit_of_list(self):
        return self._or_wild(self.chance.choice((0, 1, 2, 10, 100, 101)), INTEGERS)

    def _book(self):
        return [self._name(self._any_market()), self._side(), self._offset(), self._limit_of_list()]

    def _depth(self):
        return [self._name(self._any_market()), self._limit_of_list(), self._number(self.chance.choice(INTERVALS))]

    def _pending(self):
        return [self._user(), self._name(self._any_market()), self._offset(), self._limit_of_list()]

    def _pending_detail(self):
        market = self._any_market()
        return [self._name(market), self._or_wild(self._order_id(market)[0], INTEGERS)]

    def _some(self, rows):
        return [self._or_wild(self.chance.choice(rows)["name"], NAMES)
                for _ in range(self.chance.choice((0, 0, 1, 2, 3)))]

    def _query(self):
        return [self._user(), *self._some(self.config["assets"])]

    def _asset_summary(self):
        return self._some(self.config["assets"])

    def _market_summary(self):
        return self._some(self.config["markets"])


def _text(units, decimals):
    """The plain decimal text of `units` x 10^-decimals."""
    if decimals == 0:
        return str(units)
    digits = str(units).rjust(decimals + 1, "0")
    return f"{digits[:-decimals]}.{digits[-decimals:]}"


def _lots(text, decimals):
    whole, _, fraction = text.partition(".")
    return int(whole + fraction[:decimals].ljust(decimals, "0"))
