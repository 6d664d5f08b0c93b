"""How fast one source may guess passwords.

`connection` asks before it compares a password. Only failures use the budget up, so clients with
the right password never notice it while nobody guesses; while somebody does, every attempt of that
source waits its turn, the right ones too, because an early answer would tell right from wrong.

Always true: a wait is never longer than `LONGEST_WAIT`, so guessing cannot lock a source out, and
at most `MOST_SOURCES` sources are remembered. Time is an argument.
"""

# Ten guesses a second leave a password of 40 bits safe for centuries, and a human unhindered.
INTERVAL = 0.1  # seconds per failed attempt
BURST = 1.0  # seconds: ten failures at once, a deployment with one wrong password

# As long as a connection may stay without having authenticated.
LONGEST_WAIT = 5.0  # seconds

# About 100 bytes each; more sources than this guess only in an attack, and the one that has been
# quiet for longest is forgotten.
MOST_SOURCES = 4096


class FailureBudget:
    """When each source has paid for its failed attempts."""

    def __init__(self) -> None:
        self._paid: dict[str, float] = {}

    def wait(self, source: str, now: float) -> float:
        """Return for how many seconds an attempt of this source must wait, usually 0.

        Who waits pays in advance, so that a hundred connections get turns one after another.
        """
        paid = self._paid.get(source, 0.0)
        if paid <= now + BURST:
            return 0.0
        self._pay(source, now)
        return min(paid - now - BURST, LONGEST_WAIT)

    def fail(self, source: str, now: float) -> None:
        """Take one failed attempt from the budget of a source."""
        self._pay(source, now)

    def _pay(self, source: str, now: float) -> None:
        paid = max(self._paid.pop(source, 0.0), now) + INTERVAL
        # More than the longest wait would only make the next attempts wait for nothing.
        self._paid[source] = min(paid, now + BURST + LONGEST_WAIT)
        if len(self._paid) > MOST_SOURCES:
            self._paid.pop(next(iter(self._paid)))
