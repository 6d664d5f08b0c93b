"""What one client is subscribed to.

Made by `pubsub` with the first subscription of a client, kept in its session's holdings until the
last one ends, the client resets or goes. Always true:
  * under RESP2 a client with subscriptions is in another mode, in which only commands about
    subscriptions, PING, QUIT and RESET are taken; under RESP3 it may send anything;
  * counts are this client's own, whoever else shares its channels.
"""

from collections.abc import Awaitable, Mapping

from proxy import errors, resp, wire
from proxy.handlers import Session
from proxy.upstream.broker import Topic
from proxy.upstream.link import CHANNEL, KINDS, PATTERN, SHARD

HOLDING = "subscriptions"

_ALLOWED = frozenset([
    b"", b"subscribe", b"psubscribe", b"ssubscribe", b"unsubscribe", b"punsubscribe",
    b"sunsubscribe", b"quit", b"reset",
])  # fmt: skip


class Subscriptions:
    """The topics of one client, in the order in which it named them; its holding and its mode."""

    flag = "P"

    def __init__(self, session: Session) -> None:
        self.topics: dict[str, dict[bytes, Topic]] = {kind: {} for kind in KINDS}
        self._session = session
        self._broker = session.server.pools.broker

    @property
    def counts(self) -> Mapping[str, int]:
        return {
            "sub": len(self.topics[CHANNEL]),
            "psub": len(self.topics[PATTERN]),
            "ssub": len(self.topics[SHARD]),
        }

    @property
    def total(self) -> int:
        return sum(len(topics) for topics in self.topics.values())

    def count(self, kind: str) -> int:
        """Return what an acknowledgement tells: shard channels are counted apart from the rest."""
        if kind == SHARD:
            return len(self.topics[SHARD])
        return len(self.topics[CHANNEL]) + len(self.topics[PATTERN])

    def add(self, topic: Topic) -> None:
        """Listen to a topic that is claimed for this client."""
        self.topics[topic.kind][topic.name] = topic
        topic.listeners[self._session] = None

    def remove(self, kind: str, name: bytes) -> None:
        topic = self.topics[kind].pop(name, None)
        if topic is not None:
            topic.listeners.pop(self._session, None)
            self._broker.give_up(topic)

    def settle(self) -> None:
        """Enter or leave the subscribers' mode, as the protocol and what is left ask for."""
        session = self._session
        if self.total:
            session.holdings[HOLDING] = self
        else:
            session.holdings.pop(HOLDING, None)
        restricted = bool(self.total) and session.protocol == 2
        if restricted or session.mode is self:
            session.mode = self if restricted else None
            session.downstream.capture = restricted

    def release(self) -> None:
        for kind, topics in self.topics.items():
            for name in list(topics):
                self.remove(kind, name)

    def take(self, session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
        """Answer a command of a subscriber under RESP2."""
        if request.name in _ALLOWED or request.refusal is not None:
            return session.server.handlers[request.name](session, request)
        if request.name != b"ping":
            line = errors.in_subscriber_mode(request.name)
            return errors.discarded(line) if request.name == b"exec" else line
        words = request.arguments
        if len(words) > 2:
            return errors.wrong_arity(b"ping")
        return resp.array([resp.bulk(b"pong"), resp.bulk(words[1] if len(words) > 1 else b"")])


def subscriptions_of(session: Session) -> Subscriptions | None:
    held = session.holdings.get(HOLDING)
    return held if isinstance(held, Subscriptions) else None
