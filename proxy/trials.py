"""What rules on trial with `mode: warn` let through, as a log line per rule and round.

The data plane only counts; this looks at its counts every few seconds. A line says how many
commands broke which rule of which keyspace, never which key, so a flood is one line as well.
"""

import asyncio

from proxy import log
from proxy.wire import LIMIT_OUTCOMES, OUTCOMES, Router
from proxy.wire.rules import RULES

ROUND = 5.0  # seconds

_LET_THROUGH = OUTCOMES.index("ok")
_WOULD_REFUSE = LIMIT_OUTCOMES.index("would_refuse")


class Trials:
    """Tells of what came since the last look."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._told: dict[tuple[str, int], int] = {}  # by names: counts outlive the rules
        self._rates: dict[tuple[object, ...], int] = {}  # outlive the rules, as their counts do

    async def watch(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(ROUND)
            self.look()

    def look(self) -> None:
        """Log what each rule has let through since the last call."""
        ruleset, told = self._router.ruleset, self._told
        self._told = {}
        for keyspace, rule, outcome, count in ruleset.breaches.requests():
            row = ruleset.keyspaces[keyspace]
            if outcome != _LET_THROUGH or not row.noted[rule]:
                continue
            self._told[row.name, rule] = count
            fresh = count - told.get((row.name, rule), 0)
            if fresh > 0:
                log.event(
                    log.WARNING, "policy_breach",
                    keyspace=row.name, rule=RULES[rule], commands=fresh,
                )  # fmt: skip
        self._look_at_rates()

    def _look_at_rates(self) -> None:
        told, self._rates = self._rates, {}
        for rate in self._router.ruleset.rates:
            count = rate.statistics()[_WOULD_REFUSE]
            self._rates[rate.identity] = count
            fresh = count - told.get(rate.identity, 0)
            if rate.row.noted and fresh > 0:
                kind, _, name = rate.row.owner.partition(" ")
                log.event(
                    log.WARNING, "policy_breach",
                    **{kind: name}, rule="rate", limit=rate.row.label, commands=fresh,
                )  # fmt: skip
