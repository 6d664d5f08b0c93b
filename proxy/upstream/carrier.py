"""Where a command goes that the node of a connection of its own has not run.

`redirects` does the same for the shared connections. Here a command may wait for hours, so it has
no deadline of its own, and whoever sent it may lose interest. Always true:
  * a command is sent again only where the node proves that it has not run, or where running it
    twice is the same as once;
  * between two attempts that failed there is a pause, and the attempts have an end.
"""

import asyncio
from typing import Any, Final, NamedTuple, Protocol

from proxy import errors, wire
from proxy.upstream.dedicated import Missing, Pin, Pins, Reply
from proxy.upstream.redirects import MOST_HOPS, PAUSE, Hint

ASKING: Final = wire.pack([b"ASKING"])

# How long somebody who is willing to wait that long anyway waits for a slot that nobody serves, in
# seconds: a failover takes one node timeout (15 s by default) and an election.
OUTAGE: Final = 30.0

# A node that kept a command for this long has taken it: what comes then is a new trouble.
TAKEN: Final = 1.0  # seconds

# What a node says instead of running a command. The last is what a blocked client hears when its
# primary becomes a replica; nothing was taken from any key then.
_NOT_RUN: Final = (
    b"-TRYAGAIN", b"-CLUSTERDOWN", b"-LOADING", b"-MASTERDOWN", b"-READONLY", b"-UNBLOCKED force",
)  # fmt: skip


class Cluster(Protocol):
    """The pool of one cluster, as this module sees it. A node of it is opaque here."""

    sharded: bool

    @property
    def refresher(self) -> Hint: ...
    def named(self, address: str) -> Any | None: ...
    def move_slot(self, slot: int, node: Any) -> None: ...


class Errand(Protocol):
    """A command on its way."""

    use: str
    place: wire.Location
    protocol: int
    repeatable: bool

    @property
    def called_off(self) -> bool:
        """Return whether nobody wants further attempts."""

    def until(self, since: float) -> float:
        """Return when attempts that have failed since then have an end, by the loop's clock."""

    async def ask(self, pin: Pin) -> Reply:
        """Send the command; the connection is the errand's to keep or to give back."""

    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt, or until it is called off."""


class Hop(NamedTuple):
    """Where a command goes next: None is the owner of the slot, whoever that is by then."""

    node: Any | None = None
    asking: bool = False
    pause: bool = True


async def carry(pins: Pins, cluster: Cluster, errand: Errand) -> Reply:
    """Ask the owner of a slot, and whoever it points at; return the last answer."""
    now = asyncio.get_running_loop().time
    since, hops, hop = now(), 0, Hop()
    while True:
        began = now()
        pin = pins.acquire(errand.use, errand.place, errand.protocol, hop.node)
        reply: Reply = Missing.UNSENT
        if pin is not None:
            if hop.asking:
                pin.ask(ASKING, began + pin.endpoint.timeout)
            reply = await errand.ask(pin)
        if reply is Missing.UNKNOWN and not errand.repeatable:
            return reply
        host = pin.endpoint.host if pin is not None else ""
        following = _hop(cluster, errand.place.slot, reply, host)
        if following is None or errand.called_off:
            return reply
        if now() - began > TAKEN:
            since, hops = now(), 0
        hop, hops = following, hops + 1
        if hop.pause or hops > MOST_HOPS:
            if now() >= errand.until(since):
                return reply
            await errand.pause(PAUSE)
            if errand.called_off:
                return reply


def _hop(cluster: Cluster, slot: int, reply: Reply, host: str) -> Hop | None:
    """Return where to go after a reply, or None when it is the answer."""
    if isinstance(reply, Missing):
        cluster.refresher.hint()
        return Hop()
    redirect = redirect_of(reply)
    if redirect is not None:
        asking, address = redirect
        if not asking:
            cluster.refresher.hint()
        name, _, port = address.rpartition(":")
        # A node that does not know its own address means the one it was reached by.
        node = cluster.named(f"{name or host}:{port}") if cluster.sharded else None
        if node is None:
            return Hop()
        if not asking:
            cluster.move_slot(slot, node)
        return Hop(node, asking, pause=False)
    if reply.startswith(_NOT_RUN):
        cluster.refresher.hint()
        return Hop()
    return None


def redirect_of(reply: bytes) -> tuple[bool, str] | None:
    """Return whether a reply is -ASK instead of -MOVED, and the address, or None for neither."""
    if not reply.startswith((b"-MOVED ", b"-ASK ")):
        return None
    return reply[1:2] == b"A", reply.split()[-1].decode("ascii", "replace")


def not_run(reply: Reply) -> bool:
    """Return whether a reply proves that nobody has run the command."""
    if isinstance(reply, Missing):
        return reply is Missing.UNSENT
    return redirect_of(reply) is not None or reply.startswith(_NOT_RUN)


def in_words(reply: Reply) -> bytes:
    """Return what a client is told: nothing that only a node of a cluster may say."""
    if reply is Missing.UNKNOWN:
        return errors.UNKNOWN_OUTCOME
    if isinstance(reply, Missing) or redirect_of(reply) or reply.startswith(b"-UNBLOCKED force"):
        return errors.CLUSTERDOWN
    return reply


class Brief:
    """An errand of one command that is answered at once, whoever sent it."""

    use = "blocked"
    protocol = 2
    repeatable = False
    called_off = False

    def __init__(self, pins: Pins, place: wire.Location, command: bytes) -> None:
        self.place = place
        self._pins = pins
        self._command = command

    def until(self, since: float) -> float:
        return since + OUTAGE

    async def ask(self, pin: Pin) -> Reply:
        deadline = asyncio.get_running_loop().time() + pin.endpoint.timeout
        reply = await pin.ask(self._command, deadline)
        self._pins.give_back(pin, clean=True)
        return reply

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
