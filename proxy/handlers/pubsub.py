"""PUBLISH, SUBSCRIBE and their like.

Many clients share one subscription at a node: the `Broker` of the pools has it, a client's own part
is its `Subscriptions`. Always true:
  * acknowledgements and messages are sent as pushes, past CLIENT REPLY, as Redis does, and the
    commands are barriers, so they keep their place among other replies;
  * a client is subscribed when a node has acknowledged, and its acknowledgement precedes its first
    message; where no node does within the deadline, the command is refused as a whole;
  * PUBLISH travels with the client's other commands, so what one client publishes to one channel
    keeps its order. In a transaction it goes to the node of the keys, and keeps its order among
    what goes there. Its reply counts what that node knows: this proxy is one subscriber there,
    however many clients it has;
  * PUBSUB tells about clients of the same user on this proxy.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence

from proxy import errors, resp, wire
from proxy.handlers import Handler, Server, Session
from proxy.handlers.channels import Channels, channels_of
from proxy.handlers.forward import send
from proxy.handlers.glob import matches
from proxy.handlers.subscriptions import Subscriptions, subscriptions_of
from proxy.upstream.broker import Route, Topic
from proxy.upstream.link import BEGIN, CHANNEL, END, PATTERN, SHARD

# Longer than any channel that a person or a library names; kept for as long as it is subscribed to.
LONGEST_CHANNEL = 64 * 1024  # bytes

# Under new rules the subscriptions of so many clients are looked at in one turn of the loop.
SESSIONS_PER_TURN = 200

_KINDS = {word: kind for words in (BEGIN, END) for kind, word in words.items()}


async def follow_rules(server: Server) -> None:
    """Move subscriptions to where new rules say that their channels live, a few per turn.

    Whoever hears what it may hear no longer is disconnected, as by Redis.
    """
    channels = _rules(server, server.router.ruleset)
    roles = {role.name: index for index, role in enumerate(server.router.ruleset.roles)}
    for number, session in enumerate(list(server.sessions.values())):
        held, role = subscriptions_of(session), roles.get(session.downstream.role_name or "", -1)
        if held is not None and not all(
            role >= 0 and channels.may_subscribe(role, kind, name)
            for kind, topics in held.topics.items()
            for name in topics
        ):
            session.close("rights")
        if number % SESSIONS_PER_TURN == SESSIONS_PER_TURN - 1:
            await asyncio.sleep(0)
    for _ in server.pools.broker.reroute(channels.route):
        await asyncio.sleep(0)


def _rules(server: Server, ruleset: wire.Ruleset) -> Channels:
    return channels_of(ruleset, len(server.pools.clusters))


def publish_place(session: Session, request: wire.Request) -> wire.Location | bytes:
    """Return where PUBLISH or SPUBLISH goes, or the error line of a right that is missing.

    Any node of the cluster takes a PUBLISH, so in a transaction its slot does not matter.
    """
    channel = request.arguments[1]
    server = session.server
    channels = _rules(server, session.downstream.ruleset)
    if not channels.may_publish(session.downstream.role, channel):
        server.refusals.note(session, "channel", channel)
        return errors.NO_CHANNEL
    index = channels.cluster_of(channel)
    cluster = server.pools.clusters[index]
    slot = wire.key_slot(channel) if cluster.sharded else 0
    if request.name == b"publish":
        owner = cluster.owner_of(slot)
        if owner is None or owner.down:
            up = [node for node in cluster.primaries() if not node.down]
            for place in server.router.slots.places(index) if up else ():
                if cluster.owner_of(place.slot) in up:
                    return place
    return wire.Location(index, slot)


def publish(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """PUBLISH and SPUBLISH."""
    place = publish_place(session, request)
    return place if isinstance(place, bytes) else send(session, request, place, request.arguments)


def subscribe(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """SUBSCRIBE, PSUBSCRIBE and SSUBSCRIBE."""
    kind, names = _KINDS[request.name], request.arguments[1:]
    held = subscriptions_of(session) or Subscriptions(session)
    fresh = [name for name in dict.fromkeys(names) if name not in held.topics[kind]]
    channels = _rules(session.server, session.downstream.ruleset)
    role = session.downstream.role
    routes = [channels.route(kind, name) for name in fresh]
    for name in fresh:
        if not channels.may_subscribe(role, kind, name):
            session.server.refusals.note(session, "channel", name)
            return errors.NO_CHANNEL
    refusal = _over_limits(session, held, fresh) or _apart(session, kind, routes)
    if refusal is not None:
        return refusal
    broker = session.server.pools.broker
    topics = [broker.claim(kind, name, route) for name, route in zip(fresh, routes, strict=True)]
    if all(topic.ready for topic in topics):
        return _enter(session, held, request.name, names, topics)
    # What follows may be judged in another mode, and answered behind the acknowledgements.
    session.downstream.hold()
    return _subscribe_later(session, held, request.name, names, topics)


async def _subscribe_later(
    session: Session, held: Subscriptions, word: bytes, names: Sequence[bytes], topics: list[Topic]
) -> bytes:
    broker = session.server.pools.broker
    try:
        heard, refusal = await broker.wait(topics)
        if heard and session.downstream.owner is not None:
            return _enter(session, held, word, names, topics)
        for topic in topics:
            broker.give_up(topic)
        return refusal or errors.NOT_SUBSCRIBED
    finally:
        session.downstream.release()


def _enter(
    session: Session, held: Subscriptions, word: bytes, names: Sequence[bytes], topics: list[Topic]
) -> bytes:
    """Listen from here on, and acknowledge every name."""
    fresh = {topic.name: topic for topic in topics}
    kind, acknowledged = _KINDS[word], []
    for name in names:
        topic = fresh.pop(name, None)
        if topic is not None:
            held.add(topic)
        acknowledged.append(_acknowledge(session, word, name, held.count(kind)))
    held.settle()
    session.push(b"".join(acknowledged))
    return b""


def unsubscribe(session: Session, request: wire.Request) -> bytes:
    """UNSUBSCRIBE, PUNSUBSCRIBE and SUNSUBSCRIBE; without names, everything of the kind."""
    word, names = request.name, request.arguments[1:]
    kind, held = _KINDS[word], subscriptions_of(session)
    if not names and held is not None:
        names = list(held.topics[kind])
    acknowledged = []
    for name in names:
        if held is not None:
            held.remove(kind, name)
        count = held.count(kind) if held is not None else 0
        acknowledged.append(_acknowledge(session, word, name, count))
    if not names:
        count = held.count(kind) if held is not None else 0
        acknowledged.append(_acknowledge(session, word, None, count))
    # In the mode that it is a reply to, and past it.
    session.push(b"".join(acknowledged))
    if held is not None:
        held.settle()
    return b""


def _acknowledge(session: Session, word: bytes, name: bytes | None, count: int) -> bytes:
    shown = resp.null(session.protocol) if name is None else resp.bulk(name)
    head = b">3\r\n" if session.protocol == 3 else b"*3\r\n"
    return head + resp.bulk(word) + shown + resp.integer(count)


def _over_limits(session: Session, held: Subscriptions, fresh: Sequence[bytes]) -> bytes | None:
    limits, broker = session.server.config.limits, session.server.pools.broker
    if any(len(name) > LONGEST_CHANNEL for name in fresh):
        return errors.LONG_CHANNEL
    over = held.total + len(fresh) > limits.subscriptions
    if over or broker.subscriptions + len(fresh) > limits.subscriptions_total:
        return errors.TOO_MANY_SUBSCRIPTIONS
    return None


def _apart(session: Session, kind: str, routes: Sequence[Route]) -> bytes | None:
    """Return the error line for shard channels that do not share a slot."""
    if kind != SHARD or not routes:
        return None
    clusters = {route.clusters for route in routes}
    if len(clusters) > 1:
        return errors.CROSS_CLUSTER
    sharded = session.server.pools.clusters[routes[0].clusters[0]].sharded
    apart = sharded and len({wire.key_slot(route.name) for route in routes}) > 1
    return errors.CROSSSLOT if apart else None


# PUBSUB


def _shown(session: Session, kind: str) -> Mapping[bytes, int]:
    """Return how many clients of this user listen to which topic of a kind."""
    topics = session.server.pools.broker.topics[kind]
    counted = {name: _listeners(session, topic) for name, topic in topics.items()}
    return {name: count for name, count in counted.items() if count}


def _listeners(session: Session, topic: Topic) -> int:
    return sum(listener.user == session.user for listener in topic.listeners)


def channels(session: Session, request: wire.Request) -> bytes:
    """PUBSUB CHANNELS and SHARDCHANNELS."""
    words = request.arguments
    if len(words) > 3:
        return errors.unknown_or_arity(words[0], words[1])
    kind = SHARD if request.name == b"pubsub|shardchannels" else CHANNEL
    names = list(_shown(session, kind))
    if len(words) == 3:
        names = [name for name in names if matches(words[2], name, fold=False)]
    return resp.encode(names, session.protocol)


def numsub(session: Session, request: wire.Request) -> bytes:
    """PUBSUB NUMSUB and SHARDNUMSUB."""
    kind = SHARD if request.name == b"pubsub|shardnumsub" else CHANNEL
    topics = session.server.pools.broker.topics[kind]
    parts: list[bytes] = []
    for name in request.arguments[2:]:
        topic = topics.get(name)
        count = _listeners(session, topic) if topic is not None else 0
        parts += (resp.bulk(name), resp.integer(count))
    return resp.array(parts)


def numpat(session: Session, request: wire.Request) -> bytes:
    return resp.integer(len(_shown(session, PATTERN)))


HANDLERS: dict[bytes, Handler] = {
    b"publish": publish,
    b"spublish": publish,
    b"subscribe": subscribe,
    b"psubscribe": subscribe,
    b"ssubscribe": subscribe,
    b"unsubscribe": unsubscribe,
    b"punsubscribe": unsubscribe,
    b"sunsubscribe": unsubscribe,
    b"pubsub|channels": channels,
    b"pubsub|shardchannels": channels,
    b"pubsub|numsub": numsub,
    b"pubsub|shardnumsub": numsub,
    b"pubsub|numpat": numpat,
}
