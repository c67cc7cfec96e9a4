"""Who owns what: available and frozen balances, and what ever came in or went out."""

from .decimals import ZERO, unit


class Ledger:
    """Balances by asset and user. A zero balance has no entry, and none is ever negative.

    Call it inside `EXACT`: a change finer than the asset's `prec_save` raises.
    """

    def __init__(self, prec_save):
        self.units = {asset: unit(decimals) for asset, decimals in prec_save.items()}
        self.available = {asset: {} for asset in prec_save}
        self.frozen = {asset: {} for asset in prec_save}
        self.deposits = dict.fromkeys(prec_save, ZERO)
        self.withdrawals = dict.fromkeys(prec_save, ZERO)
        self.fees = dict.fromkeys(prec_save, ZERO)

    def available_of(self, user, asset):
        return self.available[asset].get(user, ZERO)

    def total_of(self, user, asset):
        """Available and frozen together."""
        return self.available_of(user, asset) + self.frozen[asset].get(user, ZERO)

    def deposited(self, asset):
        """What came in and was not taken out: all users' money and what they have paid as fees."""
        return self.deposits[asset] - self.withdrawals[asset]

    def deposit(self, user, asset, amount):
        self._add(self.available, user, asset, amount)
        self.deposits[asset] += amount

    def withdraw(self, user, asset, amount):
        self._add(self.available, user, asset, -amount)
        self.withdrawals[asset] += amount

    def receive(self, user, asset, amount):
        self._add(self.available, user, asset, amount)

    def pay(self, user, asset, amount):
        self._add(self.available, user, asset, -amount)

    def pay_frozen(self, user, asset, amount):
        self._add(self.frozen, user, asset, -amount)

    def pay_fee(self, user, asset, fee):
        """Fees leave the ledger: there is no fee account."""
        self._add(self.available, user, asset, -fee)
        self.fees[asset] += fee

    def freeze(self, user, asset, amount):
        self._add(self.available, user, asset, -amount)
        self._add(self.frozen, user, asset, amount)

    def unfreeze(self, user, asset, amount):
        self._add(self.frozen, user, asset, -amount)
        self._add(self.available, user, asset, amount)

    def _add(self, balances, user, asset, change):
        balance = balances[asset].get(user, ZERO) + change
        assert balance >= 0, f"user={user} asset={asset} change={change} balance={balance}"
        if balance:
            balances[asset][user] = balance.quantize(self.units[asset])
        else:
            balances[asset].pop(user, None)
