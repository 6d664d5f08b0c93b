"""Which cluster a pub/sub channel lives on, who may use it, and what nodes call it.

Compiled from a `Ruleset` for `pubsub`. A channel's cluster is that of its `channels:` rule, else
that of the keyspace whose pattern the name fits, else the default one; publishers and subscribers
are sent there alike. Always true:
  * a channel is no key: the key grammar does not judge it and no hash tag is put into it;
  * in notifications, and in the channels `__keyspace@0__:<key>`, keys have the names of clients;
    keys that no client can name, such as the proxy's own, are not told of;
  * a pattern that might match a channel that its client may not subscribe to is refused, unless it
    says exactly what the rule of another says.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

from proxy import resp, wire
from proxy.handlers.glob import literal_prefix, matches
from proxy.keys import client_name
from proxy.upstream.broker import Route
from proxy.upstream.link import CHANNEL, EVENTS, PATTERN, SHARD
from proxy.wire.rules import Keyspace

# Between a database's number and the key in the name of a notification's channel.
_BEFORE_KEY = b"__:"

# Commands whose words behind the name are channels: the first, or all of them and of which kind.
PUBLISHES = frozenset([b"publish", b"spublish"])
SUBSCRIBES: Mapping[bytes, str] = {
    b"subscribe": CHANNEL,
    b"ssubscribe": SHARD,
    b"psubscribe": PATTERN,
}

# Of these the table of commands says where channels stand, because they decide the slot.
KEYED = frozenset([b"spublish", b"ssubscribe", b"sunsubscribe"])


class Channels:
    """The rules of all channels."""

    def __init__(self, rules: wire.Ruleset, clusters: int) -> None:
        self._rules = rules
        self._clusters = tuple(range(clusters))
        self._renames = any(keyspace.hash_tag is not None for keyspace in rules.keyspaces)
        self._patterns = _matcher(rules)
        # What a pattern must spell to stand for all channels of a rule.
        self._globs = {glob_of(channel.pattern): channel for channel in rules.channels}

    def cluster_of(self, name: bytes) -> int:
        """Return the index of the cluster that a channel's messages go through."""
        index = self._patterns.find_keyspace(name)
        if index >= 0:
            return self._rules.channels[index].cluster
        return self._cluster_of_key(name)

    def _cluster_of_key(self, key: bytes) -> int:
        index = self._rules.find_keyspace(key)
        return self._rules.keyspaces[index].cluster if index >= 0 else self._rules.default_cluster

    # Rights; a role is its index in the ruleset.

    def may_publish(self, role: int, name: bytes) -> bool:
        index = self._patterns.find_keyspace(name)
        if index < 0:
            return self._rules.roles[role].other_channels
        return bool(self._rules.channels[index].publishers[role])

    def may_subscribe(self, role: int, kind: str, name: bytes) -> bool:
        own, channels = self._rules.roles[role], self._rules.channels
        # Notifications name keys, so a role of some keys hears them only where a rule says so.
        some = own.keys is not None or own.keyspaces is not None
        if kind != PATTERN:
            index = self._patterns.find_keyspace(name)
            if index >= 0:
                return bool(channels[index].subscribers[role])
            return own.other_channels and not (some and name.startswith(EVENTS))
        barred: list[object] = [*EVENTS] if some else []
        barred += [channel.pattern[0] for channel in channels if not channel.subscribers[role]]
        if own.other_channels and not any(_may_meet(name, beginning) for beginning in barred):
            return True
        named = self._globs.get(name)
        return named is not None and bool(named.subscribers[role])

    def denied(self, role: int, command: bytes, words: Sequence[bytes]) -> bytes | None:
        """Return the first channel among the words of a command that a role may not use."""
        if command in PUBLISHES:
            return None if self.may_publish(role, words[1]) else words[1]
        if (kind := SUBSCRIBES.get(command)) is None:
            return None
        return next((name for name in words[1:] if not self.may_subscribe(role, kind, name)), None)

    # Where a subscription goes.

    def route(self, kind: str, name: bytes) -> Route:
        if kind == SHARD:
            return Route((self.cluster_of(name),), name, False)
        if kind == CHANNEL and not name.startswith(EVENTS):
            return Route((self.cluster_of(name),), name, False)
        if kind == CHANNEL:
            return self._route_of_event(name)
        events = any(_may_meet(name, event) for event in EVENTS)
        if not events and len(self._clusters) == 1:
            return Route(self._clusters, name, False)
        shown, filtered = name, False
        head, found, _ = name.partition(_BEFORE_KEY)
        if self._renames and found and name.startswith(EVENTS[0]):
            # The pattern is about the names of clients, so it is tried here, on all keys.
            shown, filtered = head + found + b"*", True
        render = partial(self._render, PATTERN, name, filtered)
        return Route(self._clusters, shown, events, render)

    def _route_of_event(self, name: bytes) -> Route:
        clusters, shown = self._clusters, name
        head, found, key = name.partition(_BEFORE_KEY)
        if name.startswith(EVENTS[0]) and found:
            clusters = (self._cluster_of_key(key),)
            shown = head + found + self._rules.upstream_name(key)
        return Route(clusters, shown, True, partial(self._render, CHANNEL, name, False))

    def _render(
        self, kind: str, name: bytes, filtered: bool, cluster: int, frame: bytes
    ) -> bytes | None:
        """Return a message in the client's names, or None where it is none of the client's.

        Of a channel that several clusters might carry, only what comes through its own counts.
        """
        *_, channel, payload = resp.decode(frame)
        if not channel.startswith(EVENTS):
            return frame if self.cluster_of(channel) == cluster else None
        head, found, key = channel.partition(_BEFORE_KEY)
        about_key = channel.startswith(EVENTS[0])
        known = client_name(self._rules, key if about_key else payload)
        if known is None or self._cluster_of_key(known) != cluster:
            return None
        if about_key:
            channel = head + found + known
        else:
            payload = known
        if filtered and not matches(name, channel, fold=False):
            return None
        words = (b"pmessage", name) if kind == PATTERN else (b"message",)
        elements = [resp.bulk(word) for word in (*words, channel, payload)]
        return b">%d\r\n%b" % (len(elements), b"".join(elements))


@lru_cache(maxsize=2)
def channels_of(rules: wire.Ruleset, clusters: int) -> Channels:
    """Return the rules of channels of a ruleset; the last ones are kept."""
    return Channels(rules, clusters)


def _matcher(rules: wire.Ruleset) -> wire.Ruleset:
    """Return what finds the rule of a channel as the data plane finds the keyspace of a key."""
    return wire.Ruleset(
        commands=(),
        keyspaces=[
            Keyspace(channel.name, channel.pattern, channel.cluster, None, None, 0, b"", b"", b"")
            for channel in rules.channels
        ],
        roles=(),
        families=rules.families,
        errors=rules.errors,
        default_cluster=0,
        reject_unmatched=False,
        max_key_bytes=0,
    )


def glob_of(pattern: Sequence[object]) -> bytes:
    """Return a pattern in Redis' own way of writing it, where every segment is a star."""
    return b"".join(part if isinstance(part, bytes) else b"*" for part in pattern)


def _may_meet(pattern: bytes, beginning: object) -> bool:
    """Return whether a glob may match a name with this beginning; in doubt it may."""
    literal = literal_prefix(pattern)
    return not isinstance(beginning, bytes) or (
        literal.startswith(beginning) or beginning.startswith(literal)
    )
