"""Values of keys that PostgreSQL stands behind: fetched once, filled once, kept for a moment.

`lookups`, `several` and `through` ask for values, `backed` for refreshes. One `Reads` per sidecar.

Always true:
  * of one key a sidecar runs one statement at a time, and all sidecars together one per lease, but
    for those that waited for a lease for too long: they fetch by themselves and fill nothing;
  * nothing is filled without the lease, nothing that was read before the key was changed here, and
    nothing of which writes wait that PostgreSQL has not been told of;
  * what cannot be had is an error, never "there is no such row".
"""

import asyncio
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from proxy.errors import OriginBusy, OriginError
from proxy.handlers import leases
from proxy.handlers.flights import Flight, Flights, heard
from proxy.handlers.gutter import SECONDS, Gutter
from proxy.handlers.leases import Leases
from proxy.handlers.targets import Target
from proxy.origin.budget import BACKGROUND, Share, share_of
from proxy.origin.postgres import Postgres
from proxy.origin.render import Value, fill_arguments
from proxy.origin.rows import read_arguments, read_value
from proxy.plans import Plan
from proxy.tallies import ReadMetrics

# Between looks at a key that another sidecar fetches, in seconds: 150 ms in all.
PAUSES = (0.01, 0.02, 0.04, 0.08)

# How long after a change of a key here all its reads go to the primary, in seconds, and of how many
# keys that is known. A replica that is further behind is one that nobody should read from.
PRIMARY_SECONDS = 5.0
CHANGED = 20_000

# Keys that are fetched in the background at a time; what is beyond that is asked for again.
REFRESHES = 64

# Markers that there is no row, of one keyspace and second: ids that somebody makes up must not fill
# the memory of a node.
MARKERS = 500

# Weight of the latest fetch in what a keyspace's fetches take, and the guess before the first.
LATEST, GUESS = 0.2, 0.01


class Found(NamedTuple):
    """What a key holds by PostgreSQL; None where there is no row."""

    value: Value | None
    read: float = 0.0  # when its statement began, by the clock of the loop
    source: str = "origin"  # "origin" "gutter" "stale"
    stored: bool = False  # Redis has been given it


class There(NamedTuple):
    """The key is in Redis after all."""


class Markers:
    """How many keys of a keyspace were found to have no row within this second."""

    def __init__(self) -> None:
        self._second = 0
        self._counts: dict[str, int] = {}

    def admit(self, plan: Plan, now: float) -> bool:
        if int(now) != self._second:
            self._second, self._counts = int(now), {}
        self._counts[plan.name] = self._counts.get(plan.name, 0) + 1
        return self._counts[plan.name] <= MARKERS


class Reads:
    """Everything that is read from PostgreSQL for clients of this sidecar."""

    def __init__(self, postgres: Postgres, held: Leases, metrics: ReadMetrics) -> None:
        self.metrics = metrics
        self.leases = held
        self.postgres = postgres
        self._loop = asyncio.get_running_loop()
        self._flights: Flights[Found | There] = Flights()
        self._gutter = Gutter()
        self._markers = Markers()
        self._refreshing: dict[bytes, asyncio.Task[None]] = {}
        self._changed: OrderedDict[bytes, float] = OrderedDict()
        self._takes: dict[str, float] = {}  # seconds that a fetch of a keyspace takes
        self._waits: Callable[[Plan, bytes], bool] = lambda plan, key: False
        metrics.watch(lambda: len(self._flights), lambda: self._gutter.size, lambda: held.owed)

    def spare(self, waits: Callable[[Plan, bytes], bool]) -> None:
        """Take what tells whether a key has writes that PostgreSQL lacks: it is never filled."""
        self._waits = waits

    def stop(self) -> None:
        self._flights.stop()
        for task in self._refreshing.values():
            task.cancel()

    async def value(self, target: Target) -> Found | There | OriginError:
        """Return what a key holds that Redis lacks, and let Redis have it."""
        age = target.plan.age

        async def fetch(flight: Flight[Found | There]) -> Found | There | OriginError:
            # What may be served stale counts as there, so that a field that a hash has not is no
            # reason to fetch it.
            return await self._fetch(target, flight, age.window_ms - age.stale_ms)

        if target.lease is None:
            return await self.bypass(target)
        return await self._flights.join(target.key, fetch)

    async def bypass(self, target: Target) -> Found | OriginError:
        """Return what a key holds without a look at Redis, and without filling it."""
        # A fetch that may find the key in Redis is no answer here, so these are others.
        return _past(await self._flights.join((target.key,), partial(self._kept, target)))

    async def away(self, target: Target) -> Found | OriginError | None:
        """Return what a key holds while no node can be asked; None: the policy wants an error."""
        return await heard(partial(self.tell_away, target))

    def tell_away(self, target: Target, tell: Callable[[Found | OriginError | None], None]) -> None:
        """Call tell with the same: at once, or when the one fetch for all who wait is over."""
        plan, now = target.plan, self._loop.time()
        if plan.read is None or plan.detour.reads == "error":
            tell(None)
        elif (copy := self._gutter.get(target.key, now)) is not None:
            tell(Found(copy.value, copy.read, "gutter"))
        elif plan.detour.reads == "stale":
            tell(self._stale(target))
        else:
            fetch = partial(self._kept, target)
            self._flights.hear((target.key,), fetch, partial(self._tell_fetched, target, tell))

    def _tell_fetched(
        self,
        target: Target,
        tell: Callable[[Found | OriginError | None], None],
        found: Found | There | OriginError,
    ) -> None:
        """Tell what a fetch past Redis has brought, or what is at hand where it has failed."""
        tell(found if isinstance(found, Found) else self._stale(target) or _past(found))

    def count(self, plan: Plan, found: Found | OriginError) -> None:
        """Count an answer by where it came from."""
        if isinstance(found, OriginError):
            self.metrics.answer(plan.name, "error")
        else:
            self.metrics.answer(plan.name, found.source if found.value is not None else "none")

    def changed(self, key: bytes) -> None:
        """Hear that a key is another from now on: what was read before must not come back."""
        self._flights.void(key)
        self._flights.void((key,))
        self._gutter.drop(key)
        self._changed.pop(key, None)
        self._changed[key] = self._loop.time() + PRIMARY_SECONDS
        if len(self._changed) > CHANGED:
            self._changed.popitem(last=False)

    def refresh(self, target: Target, left_ms: int) -> None:
        """Fetch a key again in the background; one that is not old yet only now and then."""
        if target.lease is None or target.key in self._refreshing:
            return
        if self._waits(target.plan, target.key):
            return
        if len(self._refreshing) >= REFRESHES or not self._due(target.plan, left_ms):
            return
        task = self._loop.create_task(self._refreshed(target, left_ms))
        self._refreshing[target.key] = task
        task.add_done_callback(lambda done: self._refreshing.pop(target.key, None))

    def _due(self, plan: Plan, left_ms: int) -> bool:
        """Return whether to fetch: surely what is stale, early ones at random (XFetch).

        The part of reads that takes this way in any case is among them.
        """
        remaining = (left_ms - plan.age.window_ms) / 1000
        if remaining <= 0 or random.random() < plan.detour.exercise:
            return True
        takes = self._takes.get(plan.name, GUESS)
        return remaining < 20 * takes and -takes * math.log(1 - random.random()) >= remaining

    async def _refreshed(self, target: Target, left_ms: int) -> None:
        token, flight = self.leases.token(), Flight[Found | There]()
        said = await self.leases.take(target, token, max(target.plan.age.window_ms, left_ms))
        if said == leases.WON:
            changed = self._changed.get(target.key)
            found = await self._load(target, BACKGROUND, stored=True)
            # A change that came meanwhile has taken the lease away as well, if it reached the node.
            flight.stores = self._changed.get(target.key) == changed
            await self._fill(target, token, flight, found)

    async def _fetch(
        self, target: Target, flight: Flight[Found | There], least_ms: int
    ) -> Found | There | OriginError:
        token = self.leases.token()
        for pause in (*PAUSES, None):
            said = await self.leases.take(target, token, least_ms)
            if said == leases.THERE:
                return There()
            if said == leases.NONE:
                return Found(None)
            if said == leases.WON:
                found = await self._kept(target, flight, stored=True)
                filled = await self._fill(target, token, flight, found)
                return found._replace(stored=True) if filled and isinstance(found, Found) else found
            if said == leases.AWAY or pause is None:
                break
            await asyncio.sleep(pause)
        self.metrics.lost.count(said)
        return await self._kept(target, flight)

    async def _kept(
        self, target: Target, flight: Flight[Found | There], *, stored: bool = False
    ) -> Found | OriginError:
        """Fetch a key, and remember for a moment what it holds."""
        found = await self._load(target, share_of(target.plan), stored=stored)
        if isinstance(found, Found) and flight.stores and _may_be_kept(target.plan):
            self._gutter.put(target.key, found.value, found.read)
        return found

    async def _load(self, target: Target, share: Share, *, stored: bool) -> Found | OriginError:
        """Ask PostgreSQL for a key.

        What will be stored comes from the primary. A replica that is behind would put back what an
        invalidation has just removed, and only who applied that knows of it.
        """
        plan, started = target.plan, self._loop.time()
        try:
            arguments = read_arguments(plan, target.key)
        except ValueError:
            return Found(None, started)  # no text of PostgreSQL has such bytes
        lately = self._changed.get(target.key, 0.0) > started
        primary = stored or lately or not _may_be_kept(plan)
        try:
            value = await read_value(self.postgres, plan, arguments, share, primary=primary)
        except OriginError as error:
            return error
        took = self._loop.time() - started
        before = self._takes.get(plan.name, took)
        self._takes[plan.name] = before + LATEST * (took - before)
        return Found(value, started)

    async def _fill(
        self,
        target: Target,
        token: bytes,
        flight: Flight[Found | There],
        found: Found | OriginError,
    ) -> bool:
        """Let Redis have what was fetched, and others the lease; return whether Redis has it."""
        waits = self._waits(target.plan, target.key)
        if isinstance(found, OriginError) or not flight.stores or waits:
            arguments = [b"kept", b"0"]
        elif found.value is None:
            now = self._loop.time()
            life = target.plan.age.negative_ms if self._markers.admit(target.plan, now) else 0
            arguments = [b"none", b"%d" % life]
        else:
            arguments = fill_arguments(found.value, self.life_ms(target.plan, found.read))
        if not await self.leases.fill(target, token, arguments):
            self.metrics.lost.count("lease")
            return False
        return arguments[0] != b"kept"

    def life_ms(self, plan: Plan, read: float | None = None) -> int:
        """Return how long a value lives that was read then, or now; 0: for ever."""
        if not plan.ttl_ms:
            return 0
        said = plan.ttl_ms * (1 - random.uniform(0, plan.jitter)) + plan.age.window_ms
        passed = 0.0 if read is None else self._loop.time() - read
        return max(1, round(said - passed * 1000))

    def _stale(self, target: Target) -> Found | None:
        """Return what is at hand, as old as the policy allows where PostgreSQL cannot answer."""
        plan = target.plan
        if not plan.age.error_ms and plan.detour.reads != "stale":
            return None
        seconds = max(SECONDS, (plan.ttl_ms + plan.age.error_ms) / 1000)
        copy = self._gutter.get(target.key, self._loop.time(), seconds)
        return None if copy is None else Found(copy.value, copy.read, "stale")


def _past(found: Found | There | OriginError) -> Found | OriginError:
    """Return what a fetch has brought that did not look at Redis."""
    return OriginBusy("its fetch found another") if isinstance(found, There) else found


def _may_be_kept(plan: Plan) -> bool:
    """Return whether a copy of seconds ago is as good; of rights and of state it is not."""
    return plan.kind == "cache" and not plan.security
