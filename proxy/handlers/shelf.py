"""Bodies of scripts and libraries that clients sent, for nodes that do not have them.

`scripts` puts in what EVAL and SCRIPT LOAD bring, `functions` what FUNCTION LOAD does. A server has
one shelf for each.

What a client has deleted must not come back from here: it is forgotten before the nodes are asked,
and a load that was under way then leaves nothing behind (`Arrival`).

Always true: a shelf holds at most so many bodies of at most so many bytes together; what was used
least lately makes room. Then a client hears NOSCRIPT and sends the body, as with any Redis.
"""

from collections import OrderedDict
from collections.abc import Mapping

# Redis itself keeps 500 scripts that came by EVAL. A job queue brings 50 of 10 KiB each.
MOST_BODIES = 1_000
MOST_BYTES = 16 * 1024 * 1024

# A node that lacks one function may be sent all of these at once, so they are fewer.
MOST_LIBRARIES = 100
LIBRARY_BYTES = 4 * 1024 * 1024


class Arrival:
    """Bodies that are kept once nodes have answered, unless they are forgotten until then."""

    def __init__(self) -> None:
        self.forgotten: set[bytes] = set()
        self.void = False  # all were forgotten


class Shelf:
    """Bodies by name."""

    def __init__(self, most: int = MOST_BODIES, most_bytes: int = MOST_BYTES) -> None:
        self.bytes = 0
        self._most = most
        self._most_bytes = most_bytes
        self._bodies: OrderedDict[bytes, bytes] = OrderedDict()
        self._arrivals: set[Arrival] = set()

    def __len__(self) -> int:
        return len(self._bodies)

    def put(self, name: bytes, body: bytes) -> None:
        """Keep a body, unless it is larger than the whole shelf."""
        self.drop(name)
        if len(body) > self._most_bytes:
            return
        self._bodies[name] = body
        self.bytes += len(body)
        while self.bytes > self._most_bytes or len(self._bodies) > self._most:
            self.bytes -= len(self._bodies.popitem(last=False)[1])

    def get(self, name: bytes) -> bytes | None:
        body = self._bodies.get(name)
        if body is not None:
            self._bodies.move_to_end(name)
        return body

    def drop(self, name: bytes) -> None:
        self.bytes -= len(self._bodies.pop(name, b""))

    def bodies(self) -> Mapping[bytes, bytes]:
        """Return all bodies by name, those used least lately first."""
        return self._bodies

    def expect(self) -> Arrival:
        """Begin to ask nodes for what may change what is kept; `arrive` ends it."""
        arrival = Arrival()
        self._arrivals.add(arrival)
        return arrival

    def arrive(self, arrival: Arrival, bodies: Mapping[bytes, bytes]) -> None:
        """Keep what nodes have after all, unless it was forgotten meanwhile."""
        self._arrivals.discard(arrival)
        for name, body in bodies.items():
            if not arrival.void and name not in arrival.forgotten:
                self.put(name, body)

    def forget(self, name: bytes) -> dict[bytes, bytes]:
        """Let go of one body by a client's word; return it."""
        for arrival in self._arrivals:
            arrival.forgotten.add(name)
        body = self._bodies.get(name)
        self.drop(name)
        return {} if body is None else {name: body}

    def forget_all(self) -> dict[bytes, bytes]:
        """Let go of all by a client's word; return them."""
        for arrival in self._arrivals:
            arrival.void = True
        found = dict(self._bodies)
        self._bodies.clear()
        self.bytes = 0
        return found
