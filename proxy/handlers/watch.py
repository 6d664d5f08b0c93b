"""WATCH and UNWATCH: a connection to the owner of the keys, from the first WATCH to EXEC.

`Watch` is the holding "watch". The transaction that follows runs through `execute`, on the same
connection. Always true:
  * what is watched lies in one slot of one cluster;
  * a transaction never runs unguarded: where the connection was lost, given up for idleness,
    the slot has left its node or the client has changed its protocol, EXEC answers null, as if a
    key had changed;
  * commands of a client that watches wait for each other, so what it reads is not older than its
    WATCH.
"""

import asyncio
from collections.abc import Awaitable, Mapping

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.forward import locate_all
from proxy.upstream.carrier import carry, in_words, not_run, redirect_of
from proxy.upstream.dedicated import Missing, Pin, Reply

UNWATCH = wire.pack([b"UNWATCH"])

# Of one client, because the node pays for each; a transaction guards a handful.
MOST_KEYS = 10_000

# What a node says to a transaction for keys that are not, or not all, its own any more.
_LEFT = tuple(
    head + word
    for head in (b"-", b"-EXECABORT Transaction discarded because of: ")
    for word in (b"MOVED ", b"ASK ", b"TRYAGAIN", b"READONLY")
)


class Watch:
    """What one client watches: an errand to the owner of its slot for each WATCH."""

    flag = ""
    use = "watching"
    repeatable = True

    def __init__(self, session: Session, location: wire.Location) -> None:
        self.location = self.place = location
        self.protocol = session.protocol
        self.keys: set[bytes] = set()
        self._names: list[bytes] = []
        self._pin: Pin | None = None
        self._released = False
        self._session = session
        self._pins = session.server.pools.pins
        self._cluster = session.server.pools.clusters[location.cluster]
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.TimerHandle | None = None
        session.holdings["watch"] = self
        session.downstream.serial = True

    @property
    def counts(self) -> Mapping[str, int]:
        return {"watch": len(self.keys)}

    @property
    def intact(self) -> bool:
        """Return whether the node still watches."""
        return self._pin is not None and not self._pin.lost

    async def add(self, names: list[bytes]) -> bytes:
        """Watch further keys; return the reply of WATCH."""
        if len(self.keys) + len(names) > MOST_KEYS:
            if not self.keys:
                self.release()
            return errors.MAX_WATCHED
        self._session.downstream.hold()
        try:
            if self.keys and not self.intact:
                # What was watched before may have changed, which EXEC is going to say.
                self.keys.update(names)
                return resp.OK
            self._names = names
            return self._added(names, await self._send())
        finally:
            self._session.downstream.release()

    async def _send(self) -> Reply:
        """Send the WATCH to where others were sent, or to the owner of the slot."""
        if self._pin is not None:
            return await self.ask(self._pin)
        owner = self._cluster.owner_of(self.location.slot)
        if owner is None or owner.down:
            # What is known costs nobody any waiting, as for every other command.
            return errors.CLUSTERDOWN
        return await carry(self._pins, self._cluster, self)

    def _added(self, names: list[bytes], reply: Reply) -> bytes:
        if reply == resp.OK:
            self.keys.update(names)
            if self._idle is not None:
                self._idle.cancel()
            seconds = self._session.server.config.limits.watch_idle
            self._idle = self._loop.call_later(seconds, self._give_up)
        elif self.keys and (not_run(reply) or reply is Missing.UNKNOWN):
            self._give_up()
            return resp.OK
        elif not self.keys:
            self.release()
        return errors.TIMEOUT if isinstance(reply, Missing) else in_words(reply)

    async def execute(self, unit: bytes, replies: int) -> bytes:
        """Send MULTI to EXEC, which have so many replies; return EXEC's, as it came."""
        pin, self._pin = self._pin, None
        self.release()
        if pin is None or pin.lost or self._session.protocol != self.protocol:
            if pin is not None:
                pin.close()
            self._session.server.pools.plumbing.metrics.pins.watches_lost.count()
            return self._null()
        deadline = self._loop.time() + pin.endpoint.timeout
        reply = await pin.ask(unit, deadline, replies)
        # EXEC ends every watch, whatever it answers.
        self._pins.give_back(pin, clean=isinstance(reply, bytes))
        if isinstance(reply, Missing):
            return errors.UNKNOWN_OUTCOME if reply is Missing.UNKNOWN else self._null()
        if reply.startswith(_LEFT):
            if redirect_of(reply) or reply.startswith(b"-EXECABORT"):
                self._cluster.refresher.hint()
            return self._null()
        return reply

    def release(self) -> None:
        """Watch nothing any more."""
        if self._released:
            return
        self._released = True
        self._pins.disclaim("watching", 1)
        if self._idle is not None:
            self._idle.cancel()
        if self._session.holdings.get("watch") is self:
            del self._session.holdings["watch"]
        self._session.downstream.serial = False
        pin, self._pin = self._pin, None
        if pin is not None:
            self._forget(pin)

    def _forget(self, pin: Pin) -> None:
        """Have the node forget what is watched, and give the connection back when it has."""
        ended = pin.ask(UNWATCH, self._loop.time() + pin.endpoint.timeout)
        ended.add_done_callback(
            lambda reply: self._pins.give_back(pin, clean=reply.result() == resp.OK)
        )

    def _give_up(self) -> None:
        """Close the connection; EXEC is going to answer null."""
        if self._pin is not None:
            self._pin.close()

    def _null(self) -> bytes:
        return resp.null_array(self._session.protocol)

    # The errand.

    @property
    def called_off(self) -> bool:
        return self._released

    def until(self, since: float) -> float:
        return since + self._cluster.config.timeout

    async def ask(self, pin: Pin) -> Reply:
        """Send a WATCH, on the connection that watches already, if there is one."""
        deadline = self._loop.time() + pin.endpoint.timeout
        reply = await pin.ask(wire.pack([b"WATCH", *self._names]), deadline)
        if reply == resp.OK and not self._released:
            self._pin = pin
        elif pin is not self._pin:
            self._pins.give_back(pin, clean=reply != resp.OK)
        return reply

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def watch(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    places = locate_all(session, request, request.arguments)
    if isinstance(places, bytes):
        return places
    names = [place.name for place in places]
    held = session.holdings.get("watch")
    if isinstance(held, Watch):
        if held.location.cluster != places[0].cluster:
            return errors.CROSS_CLUSTER
        return held.add(names) if held.location.slot == places[0].slot else errors.CROSSSLOT
    if not session.server.pools.pins.claim("watching", 1, session.server.config.limits.watching):
        return errors.MAX_WATCHING
    return Watch(session, places[0]).add(names)


def unwatch(session: Session, request: wire.Request) -> bytes:
    held = session.holdings.get("watch")
    if held is not None:
        held.release()
    return resp.OK


HANDLERS: dict[bytes, Handler] = {b"watch": watch, b"unwatch": unwatch}
