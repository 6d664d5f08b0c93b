"""What is said on a connection that is subscribed to channels of one node, without the socket.

A `Subscriber` makes one per node that it listens to; an `UpstreamConnection` carries its bytes, and
finds here what it finds in a `wire.Upstream`. It speaks RESP3, where acknowledgements and messages
are pushes and an error or a PONG is the reply to the oldest command. Always true:
  * one channel or pattern per command, so an error names what it refuses by its place in the queue;
  * an acknowledgement counts only for the last thing that was asked about its channel;
  * what is asked and unanswered has a deadline: no answer at all for that long ends the connection.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import hiredis

from proxy import resp, wire

# The three kinds of subscriptions, and with which words each begins and ends.
CHANNEL, PATTERN, SHARD = "channel", "pattern", "shard"
KINDS = (CHANNEL, PATTERN, SHARD)
BEGIN = {CHANNEL: b"subscribe", PATTERN: b"psubscribe", SHARD: b"ssubscribe"}
END = {CHANNEL: b"unsubscribe", PATTERN: b"punsubscribe", SHARD: b"sunsubscribe"}
_BEGINS = {word: kind for kind, word in BEGIN.items()}
_ENDS = {word: kind for kind, word in END.items()}

# How each kind of message begins, up to the length of its channel, or of its pattern.
_HEADS = (
    (b">3\r\n$7\r\nmessage\r\n$", CHANNEL),
    (b">4\r\n$8\r\npmessage\r\n$", PATTERN),
    (b">3\r\n$8\r\nsmessage\r\n$", SHARD),
)

# Channels of keyspace notifications. A cluster does not pass them on from node to node.
EVENTS = (b"__keyspace@", b"__keyevent@")


class Key(NamedTuple):
    """A subscription as a node has it."""

    kind: str  # one of KINDS
    name: bytes  # as nodes see it


class Receiver(Protocol):
    """Who hears what a node says."""

    def message(self, link: "Link", key: Key, channel: bytes, frame: bytes) -> None:
        """Take a message as its RESP3 push."""

    def acked(self, link: "Link", key: Key) -> None: ...
    def refused(self, link: "Link", key: Key, line: bytes) -> None:
        """Hear that the node does not take a subscription: in an error line of its own."""

    def ended(self, link: "Link", key: Key) -> None:
        """Hear that the node has ended a subscription: its slot has moved."""


class _Asked(NamedTuple):
    """A command without its answer; the token tells it from others about the same channel."""

    word: bytes
    key: Key | None  # None for PING
    token: int


class Link:
    """The subscriptions of one connection, and its place in the stream."""

    def __init__(self, address: str, timeout: float, receiver: Receiver) -> None:
        self.address = address
        self.owner: Any = None  # the UpstreamConnection
        self.available = False
        self.fault: str | None = None
        self.connected = False
        self._timeout = timeout
        self._receiver = receiver
        self._wanted: dict[Key, int] = {}  # with the token of the command that asks for it
        self._acked: set[Key] = set()
        self._asked: deque[_Asked] = deque()
        self._output: list[bytes] = []
        # One message at most, and what one may hold is bounded by the publisher's own limits.
        self._input = bytearray()
        self._tokens = 0
        self._progress = 0.0  # when the node last answered, or had nothing to answer

    # What the subscriber calls.

    @property
    def empty(self) -> bool:
        return not self._wanted

    @property
    def complete(self) -> bool:
        """Return whether everything that is wanted is acknowledged."""
        return self.connected and len(self._acked) == len(self._wanted)

    def acknowledged(self) -> Iterator[Key]:
        return iter(tuple(self._acked))

    def begin(self, key: Key) -> None:
        """Want a subscription, now and whenever the connection is there again."""
        if key not in self._wanted:
            self._tokens += 1
            self._wanted[key] = self._tokens
            if self.connected:
                self._ask(BEGIN[key.kind], key, self._tokens)

    def end(self, key: Key) -> None:
        if self._wanted.pop(key, None) is not None:
            self._acked.discard(key)
            if self.connected:
                self._tokens += 1
                self._ask(END[key.kind], key, self._tokens)

    def probe(self) -> None:
        """Ask for a sign of life, unless an answer is waited for anyway."""
        if self.connected and not self._asked:
            self._ask(b"ping", None, 0)

    def greeted(self) -> None:
        """Ask for everything on a connection that is new."""
        self.connected = True
        for key, token in self._wanted.items():
            self._ask(BEGIN[key.kind], key, token)

    def _ask(self, word: bytes, key: Key | None, token: int) -> None:
        self._output.append(wire.pack([word] if key is None else [word, key.name]))
        self._asked.append(_Asked(word, key, token))

    # What the connection calls: the part of a wire.Upstream.

    @property
    def pending(self) -> int:
        return len(self._asked)

    def data_to_send(self, now: float) -> bytes:
        if len(self._asked) == len(self._output):
            # Nothing was unanswered before these.
            self._progress = now
        data = b"".join(self._output)
        self._output.clear()
        return data

    def next_deadline(self) -> float:
        return self._progress + self._timeout

    def expire(self, now: float) -> tuple[bool, list[wire.Orphan]]:
        """Return whether to close the connection; nothing here is answered one by one."""
        return bool(self._asked) and now >= self.next_deadline(), []

    def connection_lost(self) -> list[wire.Orphan]:
        """Forget what the node knew; what is wanted stays wanted."""
        self.connected = False
        self.fault = None
        self._acked.clear()
        self._asked.clear()
        self._output.clear()
        self._input = bytearray()
        return []

    def receive_data(self, data: memoryview, now: float) -> None:
        """Take bytes from the node."""
        received = self._input
        received += data
        position = 0
        try:
            while self._input is received:
                end = wire.frame_end(received, position)
                if end < 0:
                    break
                self._take(bytes(received[position:end]), now)
                position = end
        except (ValueError, IndexError, hiredis.HiredisError) as error:
            self.fault = self.fault or f"no subscriber's reply: {error}"
        # A receiver that has closed the connection has emptied it as well.
        if self._input is received:
            del received[:position]

    def _take(self, frame: bytes, now: float) -> None:
        if frame[:1] == b">":
            for head, kind in _HEADS:
                if frame.startswith(head):
                    self._message(kind, frame, len(head))
                    return
            self._pushed(frame, now)
            return
        if not self._asked:
            raise ValueError("the node said more than it was asked")
        asked = self._asked.popleft()
        self._progress = now
        if frame[:1] not in b"-!":
            if asked.key is not None:
                raise ValueError("a subscription was answered with no push")
        elif asked.key is not None and self._wanted.get(asked.key) == asked.token:
            del self._wanted[asked.key]
            self._receiver.refused(self, asked.key, frame)

    def _message(self, kind: str, frame: bytes, at: int) -> None:
        name, at = _bulk(frame, at)
        channel = _bulk(frame, at + 1)[0] if kind == PATTERN else name
        self._receiver.message(self, Key(kind, name), channel, frame)

    def _pushed(self, frame: bytes, now: float) -> None:
        """Take an acknowledgement; other pushes mean nothing here."""
        words = resp.decode(frame)
        word, name = bytes(words[0]), words[1] if len(words) > 1 else None
        kind = _BEGINS.get(word) or _ENDS.get(word)
        if kind is None or not isinstance(name, bytes):
            return
        key = Key(kind, name)
        if self._asked and self._asked[0][:2] == (word, key):
            token = self._asked.popleft().token
            self._progress = now
            if word in _BEGINS and self._wanted.get(key) == token:
                self._acked.add(key)
                self._receiver.acked(self, key)
        elif word in _BEGINS:
            raise ValueError("a subscription was acknowledged out of order")
        elif self._wanted.pop(key, None) is not None:
            self._acked.discard(key)
            self._receiver.ended(self, key)


def _bulk(frame: bytes, at: int) -> tuple[bytes, int]:
    """Return the bulk string whose length stands at a position, and where it ends."""
    line = frame.index(b"\r\n", at)
    end = line + 2 + int(frame[at:line])
    return frame[line + 2 : end], end + 2
