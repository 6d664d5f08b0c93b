"""How fast one source may guess passwords.

`connection` asks before it compares a password. Only failures use the budget up, so clients with
the right password never notice it while nobody guesses; while somebody does, attempts wait their
turn, the right ones too, because an early answer would tell right from wrong.

What an attempt says cannot decide who waits, but its connection can: in a pod all clients have one
address. A source has two accounts, one for connections that have never failed and one for those
that have. Who stays and guesses on uses up the second one, and a client that has just connected
does not wait. Who guesses on a new connection each time uses up the first one too, and so do more
than 25 that are closed for want of a right password (`limits.unauthenticated`) and come back: then
everybody of that source waits, and `LONGEST_WAIT` is what bounds it.

Always true: a wait is never longer than `LONGEST_WAIT`, so guessing cannot lock a source out, and
at most `MOST_ACCOUNTS` accounts are remembered. Time is an argument.
"""

from typing import NamedTuple

# Ten guesses a second on both accounts together leave a password of 40 bits safe for centuries,
# and a human unhindered.
INTERVAL = 0.2  # seconds per failed attempt of one account
BURST = 5.0  # seconds: 25 failures at once, such as of a deployment with one wrong password

# As long as a connection may stay without having authenticated. With more connections than have a
# turn within it, 25 on one account, each of them guesses once in this time, however many they are.
LONGEST_WAIT = 5.0  # seconds

# About 100 bytes each; more sources than this guess only in an attack, and the account that has
# been quiet for longest is forgotten.
MOST_ACCOUNTS = 4096


class Account(NamedTuple):
    """Whom an attempt is charged to."""

    source: str
    failed: bool  # one attempt on the same connection has failed before


class FailureBudget:
    """When each account has paid for its failed attempts."""

    def __init__(self) -> None:
        self._paid: dict[Account, float] = {}

    def wait(self, account: Account, now: float) -> float:
        """Return for how many seconds an attempt of this account must wait, usually 0.

        Who waits pays in advance, so that a hundred connections get turns one after another.
        """
        paid = self._paid.get(account, 0.0)
        if paid <= now + BURST:
            return 0.0
        self._pay(account, now)
        return min(paid - now - BURST, LONGEST_WAIT)

    def fail(self, account: Account, now: float) -> None:
        """Charge an account with one failed attempt."""
        self._pay(account, now)

    def _pay(self, account: Account, now: float) -> None:
        paid = max(self._paid.pop(account, 0.0), now) + INTERVAL
        # More than the longest wait would only make the next attempts wait for nothing.
        self._paid[account] = min(paid, now + BURST + LONGEST_WAIT)
        if len(self._paid) > MOST_ACCOUNTS:
            self._paid.pop(next(iter(self._paid)))
