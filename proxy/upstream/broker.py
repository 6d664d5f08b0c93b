"""Who listens to what: one subscription at a node for all clients that want the same.

The pools make one `Broker`; handlers claim topics in it and attach clients to them. Always true:
  * a topic is subscribed to once per cluster, however many clients want it, and unsubscribed from
    with the last of them;
  * a client is attached only when a node has acknowledged the topic, so no message is missed
    behind its own acknowledgement, and none comes before it;
  * a message is made once for each protocol, and pushed in the order in which the node sent it.
What a slow client costs is bounded by the limits of its output; see `Session.push`.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from proxy.upstream.link import BEGIN, KINDS, Key
from proxy.upstream.subscriber import Cluster, Plumbing, Subscriber, Want

# Under new rules each topic is looked up again, some 5 µs each.
TOPICS_PER_TURN = 100


class Listener(Protocol):
    """A client, as the broker sees it."""

    @property
    def user(self) -> str: ...
    @property
    def protocol(self) -> int: ...
    def push(self, data: bytes) -> None: ...
    def close(self, reason: str = ...) -> None: ...


class Route(NamedTuple):
    """Where a channel or pattern is subscribed to, and as what."""

    clusters: tuple[int, ...]
    name: bytes  # as nodes see it
    everywhere: bool  # at all primaries of a cluster, not at one
    render: Callable[[int, bytes], bytes | None] | None = None
    """Makes the client's push of a node's, or None for a message that is not the client's."""


class Topic:
    """A channel or pattern as clients name it, and who listens."""

    __slots__ = ("claims", "kind", "listeners", "name", "route", "wants")

    def __init__(self, kind: str, name: bytes, route: Route) -> None:
        self.kind = kind
        self.name = name
        self.route = route
        self.claims = 0  # listeners, and who waits to be one
        self.listeners: dict[Listener, None] = {}
        self.wants: list[Want] = []

    @property
    def ready(self) -> bool:
        return all(want.ready for want in self.wants)

    @property
    def heard(self) -> bool:
        """Return whether at least one node of one cluster has acknowledged it."""
        return any(want.heard for want in self.wants)


class Broker:
    """All topics of the process."""

    def __init__(self, clusters: Sequence[Cluster], plumbing: Plumbing) -> None:
        self.topics: dict[str, dict[bytes, Topic]] = {kind: {} for kind in KINDS}
        self.subscriptions = 0  # of all clients
        self._metrics = plumbing.metrics.pubsub
        self._subscribers = [Subscriber(cluster, plumbing, self) for cluster in clusters]
        self._disconnects = [cluster.config.gap == "disconnect" for cluster in clusters]
        # By cluster and what its nodes know: several topics where nodes cannot tell them apart.
        self._heard: dict[tuple[int, Key], tuple[Want, list[Topic]]] = {}

    # What handlers call.

    def claim(self, kind: str, name: bytes, route: Route) -> Topic:
        """Return a topic that stays until it is given up."""
        topics = self.topics[kind]
        topic = topics.get(name)
        if topic is None:
            topic = topics[name] = Topic(kind, name, route)
            self._begin(topic)
        topic.claims += 1
        self.subscriptions += 1
        self._metrics.subscriptions[BEGIN[kind].decode()].inc()
        return topic

    def give_up(self, topic: Topic) -> None:
        """Take a claim back; with the last one the topic ends."""
        topic.claims -= 1
        self.subscriptions -= 1
        self._metrics.subscriptions[BEGIN[topic.kind].decode()].dec()
        if topic.claims == 0:
            del self.topics[topic.kind][topic.name]
            self._end(topic)

    async def wait(self, topics: Iterable[Topic]) -> tuple[bool, bytes | None]:
        """Wait until nodes have acknowledged the topics; return whether, and a node's refusal.

        At the deadline, one node that listens is enough: what the others miss is a gap.
        """
        wants = [want for topic in topics for want in topic.wants if not want.ready]
        if wants:
            deadline = max(subscriber.timeout for subscriber in self._subscribers)
            waiters = [want.wait() for want in wants]
            await asyncio.wait(waiters, timeout=deadline)
            for want, waiter in zip(wants, waiters, strict=True):
                want.waiters.discard(waiter)
        refusal = next((want.refusal for want in wants if want.refusal is not None), None)
        return refusal is None and all(topic.heard for topic in topics), refusal

    def reroute(self, route_of: Callable[[str, bytes], Route]) -> Iterator[None]:
        """Follow rules that have changed: what belongs elsewhere is subscribed to there.

        Yields after every few topics, so that the loop can work in between.
        """
        topics = [topic for topics in self.topics.values() for topic in topics.values()]
        for number, topic in enumerate(topics):
            if topic.claims:
                self._lead(topic, route_of(topic.kind, topic.name))
            if number % TOPICS_PER_TURN == TOPICS_PER_TURN - 1:
                yield

    def _lead(self, topic: Topic, route: Route) -> None:
        if route[:3] != topic.route[:3]:
            self._end(topic)
            topic.route = route
            self._begin(topic)
        topic.route = route

    def _begin(self, topic: Topic) -> None:
        route = topic.route
        key = Key(topic.kind, route.name)
        for cluster in route.clusters:
            entry = self._heard.get((cluster, key))
            if entry is None:
                want = self._subscribers[cluster].want(key, route.everywhere)
                entry = self._heard[cluster, key] = (want, [])
            entry[1].append(topic)
            topic.wants.append(entry[0])

    def _end(self, topic: Topic) -> None:
        key = Key(topic.kind, topic.route.name)
        for cluster in topic.route.clusters:
            want, topics = self._heard[cluster, key]
            topics.remove(topic)
            if not topics:
                del self._heard[cluster, key]
                self._subscribers[cluster].drop(want)
        topic.wants.clear()

    # What the pools call.

    def refresh(self) -> None:
        for subscriber in self._subscribers:
            subscriber.refresh()

    def stop(self) -> None:
        for subscriber in self._subscribers:
            subscriber.stop()

    # What subscribers say.

    def message(self, cluster: int, key: Key, frame: bytes) -> None:
        entry = self._heard.get((cluster, key))
        if entry is None:
            return
        for topic in entry[1]:
            render = topic.route.render
            push = frame if render is None else render(cluster, frame)
            if push is not None:
                # RESP2 has no pushes: there it is an array of the same elements.
                plain = b"*" + push[1:]
                for listener in tuple(topic.listeners):
                    listener.push(push if listener.protocol == 3 else plain)
                self._metrics.delivered.count(amount=len(topic.listeners))

    def interrupted(self, cluster: int, keys: list[Key]) -> None:
        """Close who must know that it may have missed messages, where the operator wants that."""
        if not self._disconnects[cluster]:
            return
        missed = {
            listener
            for key in keys
            for topic in self._heard[cluster, key][1]
            for listener in topic.listeners
        }
        for listener in missed:
            listener.close("gap")
