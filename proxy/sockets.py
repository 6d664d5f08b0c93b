"""What is known of a client's socket beyond what comes out of it."""

import asyncio
import select

# What is written is accounted in pieces of at least this, so that few are kept.
PIECE = 64 * 1024


class Kept:
    """What a transport keeps in memory: of a write that is sent in part, all."""

    def __init__(self) -> None:
        self._sizes: list[int] = []

    def add(self, size: int) -> None:
        """Take note of a write."""
        if self._sizes and self._sizes[-1] < PIECE:
            self._sizes[-1] += size
        else:
            self._sizes.append(size)

    def of(self, unsent: int) -> int:
        """Return how many bytes are kept while so many are unsent."""
        kept = sum(self._sizes)
        while self._sizes and kept - self._sizes[0] >= unsent:
            kept -= self._sizes.pop(0)
        return max(kept, unsent)


def address(name: object) -> str:
    """Return a socket's name as Redis writes it; a unix socket's peer has none."""
    if isinstance(name, tuple):
        host, port = str(name[0]), name[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{name.decode() if isinstance(name, bytes) else name or ''}:0"


def has_ended(transport: asyncio.Transport) -> bool:
    """Return whether the other side has closed its end; the loop may not have heard of it yet."""
    return _is(transport, select.POLLRDHUP)


def has_more(transport: asyncio.Transport) -> bool:
    """Return whether something has come in that nobody has read."""
    return _is(transport, select.POLLIN)


def _is(transport: asyncio.Transport, state: int) -> bool:
    raw = transport.get_extra_info("socket")
    if raw is None:
        return False
    look = select.poll()
    look.register(raw.fileno(), state)
    return bool(look.poll(0))
