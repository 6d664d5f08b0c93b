"""What one client has not read of its replies.

Made by `session`, which sends through it and hears from it when no more may be taken. Always true:
  * a client that leaves more than OUTPUT_HIGH unread is `paused`: no command of it is taken until
    it has read down to OUTPUT_LOW;
  * what a client that is behind leaves is counted in the total of all (`memory.Unread`).
"""

import asyncio

from proxy import sockets, wire
from proxy.memory import Session, Unread

# Replies in the transport above which no further command of the client is taken, and below which
# it goes on. A MiB is a few milliseconds of loopback and bounds what a client that stopped costs.
OUTPUT_HIGH = 1024 * 1024
OUTPUT_LOW = 256 * 1024

# Unread replies below which a client that was behind counts towards the total of all no longer.
CAUGHT_UP = 4 * 1024

# Before AUTH nobody needs to send more at once, or to leave more than a few error lines unread.
STRANGER_BYTES = 4 * 1024


class Output:
    """A client's replies on their way to its transport, and in it."""

    __slots__ = ("_behind", "_downstream", "_kept", "_session", "_transport", "_unread")

    def __init__(self, session: Session, unread: Unread) -> None:
        self._session = session
        self._downstream = session.downstream
        self._transport: asyncio.Transport | None = None
        self._unread = unread
        self._behind = False  # unread replies are counted
        self._kept = sockets.Kept()  # by the transport, since it is behind

    def attach(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def detach(self) -> None:
        """Hear that there is no connection any more."""
        self._transport = None

    @property
    def unread_bytes(self) -> int:
        """Return the bytes that the client has not taken yet."""
        sent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return sent + self._downstream.output_bytes

    def send(self) -> None:
        """Give the transport what is ready."""
        downstream = self._downstream
        data = downstream.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)
            if self._behind:
                self._kept.add(len(data))
        if self._behind or downstream.output_bytes > wire.BEHIND:
            # Replies that wait for one before them are in no transport yet.
            self.count()

    def resume(self) -> None:
        """Hear that the client has read down to the low mark."""
        if self._downstream.paused:
            self._downstream.paused = False
            self.set_marks()
        self.count()

    def set_marks(self) -> None:
        """Say when to hear of the transport: of falling behind, or, paused, of going on."""
        if self._transport is None:
            return
        if self._downstream.role_name is None:
            self._transport.set_write_buffer_limits(high=STRANGER_BYTES)
        elif self._downstream.paused:
            self._transport.set_write_buffer_limits(high=OUTPUT_HIGH, low=OUTPUT_LOW)
        else:
            self._transport.set_write_buffer_limits(high=wire.BEHIND, low=CAUGHT_UP)

    def count(self) -> None:
        """Tell the account what is unread, and pause a client that leaves too much."""
        if self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size()
        stranger = self._downstream.role_name is None
        if not self._downstream.paused and unsent > (STRANGER_BYTES if stranger else OUTPUT_HIGH):
            self._downstream.paused = True
            self.set_marks()
        waiting = self._downstream.output_bytes
        # Above the low mark the transport stays silent, however much is added.
        self._behind = self._downstream.paused or unsent + waiting > CAUGHT_UP
        held = self._kept.of(unsent)
        self._unread.count(self._session, held + waiting if self._behind else 0)
