"""Cells of shared rate limits: reserved in Redis for clients that wait for them, and counted there.

The data plane calls `Reservations.reserve` for a client whose command needs a cell that this
sidecar does not have; the client is held, and judged again when the answer is there. Always true:
  * a client waits no longer than PATIENCE for one answer, and keeps its order meanwhile;
  * clients of one id wait for one answer, and each gets a cell of it, or all hear that there is
    none; what was reserved beyond that is spent without asking;
  * while Redis cannot be asked about an id, each limit does as its `on_unavailable` says, and
    somebody asks again every PAUSE. One log line and a gauge say so for each cluster.
What is known of an id in Redis lies under a digest of it, so ids of any length cost the same.
"""

import asyncio
import hashlib
import secrets
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from proxy import log, resp, wire
from proxy.tallies import RateMetrics
from proxy.upstream.errands import Errands, Script
from proxy.wire.rules import Algorithm

RATE = Script("rate")
SIDECARS = Script("sidecars")

# How long a client waits for an answer, in seconds. Redis answers within a millisecond; a quarter
# of a second is a pause of a node that one can still call short.
PATIENCE = 0.25

# How long an id is decided about without Redis before it is asked about again, in seconds. Clients
# wait while it is asked, so not at every command; and after a failover it should not be long.
PAUSE = 1.0

# A cluster is away until nothing has failed for this long, in seconds: of its nodes one may answer
# while another does not, and every change is a log line.
CALM = 5.0

# How often a sidecar says that it is there, and after which silence it is not, in seconds.
PRESENCE_ROUND = 5.0
PRESENCE = 15

# Where sidecars say so, and how what is known of an id begins. Internal keys, never shown.
PRESENCE_KEY = b"sidecache:sidecars"
PREFIX = b"sidecache:rate:"


class Plumbing(Protocol):
    """What all connections of the process share, as this module sees it."""

    @property
    def batch(self) -> wire.Batch: ...
    @property
    def metrics(self) -> Any: ...
    @property
    def states(self) -> log.StateLog: ...


class _Question(NamedTuple):
    """Cells of one id of one limit, and who waits for them."""

    rate: wire.Rate
    mark: int  # the id's hash in this sidecar
    name: bytes
    clients: list[wire.Downstream]


def key_of(rate: wire.Rate, name: bytes) -> bytes:
    """Return where an id of a limit is counted. The same limit is the same key in all sidecars."""
    row = rate.row
    digest = hashlib.blake2b(
        repr((row.owner, row.label, row.words, row.algorithm, row.burst)).encode() + b"\0" + name,
        digest_size=16,
    )
    return PREFIX + b"{%b}" % digest.hexdigest().encode()


def _arguments(rate: wire.Rate, cells: int) -> list[bytes]:
    row = rate.row
    tolerance = -1.0
    if row.algorithm is Algorithm.GCRA:
        # A batch is granted at once, so it has to be tolerated as well.
        tolerance = (row.burst + rate.batch - 1) * row.seconds / row.amount * 1e6
    return [b"%d" % cells, b"%d" % row.amount, b"%d" % round(row.seconds * 1e6),
            b"%.3f" % tolerance]  # fmt: skip


class Reservations:
    """All shared limits of the process."""

    def __init__(self, router: wire.Router, plumbing: Plumbing, clusters: tuple[str, ...]) -> None:
        self._router = router
        self._clusters = clusters
        self._metrics: RateMetrics = plumbing.metrics.rates
        self._states = plumbing.states
        self._errands = Errands(router, plumbing.batch)
        self._loop = asyncio.get_running_loop()
        # One per client and limit at most: clients wait for one command at a time.
        self._asked: dict[tuple[int, int], _Question] = {}
        self._failed: dict[int, float] = {}  # by cluster: when an answer last failed to come
        self._sidecars = Counter[int]()  # by cluster
        self._me = secrets.token_hex(8).encode()

    def follow_rules(self) -> None:
        """Take the questions of the limits that are in force."""
        for rate in self._router.ruleset.rates:
            if rate.stock is not None:
                rate.reserve = self.reserve
                rate.shared_by(self._sidecars[rate.row.cluster])

    def reserve(self, rate: wire.Rate, mark: int, name: bytes, client: wire.Downstream) -> None:
        """Hold a client until there is an answer about an id."""
        client.hold()
        place = id(rate), mark
        if place in self._asked:
            self._asked[place].clients.append(client)
            return
        self._asked[place] = _Question(rate, mark, name, [client])
        # Who else needs a cell of this id in this turn of the loop is asked for as well.
        self._loop.call_soon(self._ask, place)

    def _ask(self, place: tuple[int, int]) -> None:
        question = self._asked[place]
        rate = question.rate
        sent = self._loop.time()
        cells = rate.wanted(question.mark, len(question.clients), sent)
        timer = self._loop.call_later(PATIENCE, self._give_up, place, question)

        def heard(reply: bytes) -> None:
            timer.cancel()
            self._heard(place, question, reply, sent)

        key = key_of(rate, question.name)
        self._errands.run(RATE, rate.row.cluster, key, _arguments(rate, cells), heard)

    def _heard(
        self, place: tuple[int, int], question: _Question, reply: bytes, sent: float
    ) -> None:
        """Put what Redis has granted in stock, also when nobody waits any more."""
        answer = _numbers(reply)
        if answer is None:
            self._give_up(place, question)
            return
        granted, wait = answer
        rate, mark, now = question.rate, question.mark, self._loop.time()
        if granted:
            rate.grant(mark, granted, now)
        if granted < len(question.clients):
            # From when it was sent: who asks a moment early waits, who asks late has lost a cell.
            # Long enough for a batch to come together, which the tolerance has room for.
            even = (rate.batch - 1) * rate.row.seconds / rate.row.amount
            rate.close(mark, sent + max(wait / 1e6, even), now)
        self._metrics.answers.count("granted" if granted else "none")
        self._back(rate.row.cluster, now)
        self._let_go(place, question)

    def _give_up(self, place: tuple[int, int], question: _Question) -> None:
        """Let an id be decided about without Redis for a while."""
        now = self._loop.time()
        rate = question.rate
        if self._asked.get(place) is question:
            self._metrics.answers.count("failed")
            self._failed[rate.row.cluster] = now
            self._tell(rate.row.cluster, "away")
            rate.give_up(question.mark, now + PAUSE, now)
        self._let_go(place, question)

    def _let_go(self, place: tuple[int, int], question: _Question) -> None:
        if self._asked.get(place) is not question:
            return
        del self._asked[place]
        for client in question.clients:
            client.release()

    # Whether clusters can be asked.

    def _back(self, cluster: int, now: float) -> None:
        if cluster in self._failed and now - self._failed[cluster] > CALM:
            del self._failed[cluster]
            self._tell(cluster, "back")

    def _tell(self, cluster: int, state: str) -> None:
        name = self._clusters[cluster]
        self._metrics.away.labels(name).set(state == "away")
        level = log.WARNING if state == "away" else log.INFO
        self._states.change(level, f"rates {name}", state, f"shared_rates_{state}", cluster=name)

    # How many sidecars share.

    async def watch(self) -> None:
        """Say that this sidecar is there, and count all, for ever."""
        while True:
            for cluster in self._shared_clusters():
                self._announce(cluster)
            await asyncio.sleep(PRESENCE_ROUND)

    def _shared_clusters(self) -> Iterable[int]:
        return {r.row.cluster for r in self._router.ruleset.rates if r.stock is not None}

    def _announce(self, cluster: int) -> None:
        def heard(reply: bytes) -> None:
            count = _number(reply)
            # While nobody answers, the others are taken to be there as before.
            if count is not None:
                self._sidecars[cluster] = count
                self._back(cluster, self._loop.time())
                self.follow_rules()

        words = [self._me, b"%d" % PRESENCE]
        self._errands.run(SIDECARS, cluster, PRESENCE_KEY, words, heard)


def _number(reply: bytes) -> int | None:
    return int(reply[1:-2]) if reply[:1] == b":" else None


def _numbers(reply: bytes) -> tuple[int, int] | None:
    """Return the script's two numbers, or None for an error."""
    if reply[:1] != b"*":
        return None
    value: Any = resp.decode(reply)
    return int(value[0]), int(value[1])
