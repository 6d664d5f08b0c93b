"""Rules about how the parts of the policies go together; each complaint is a value.

The loader gives every keyspace, with its defaults, to each check. What cannot be safe is refused
here: this is where a policy that would sell a seat twice is stopped. What depends on the database
is left to those who can see it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from proxy.documents import quote, suggest
from proxy.policy import sql
from proxy.policy.blocks import HashTagWord, RateLimit
from proxy.policy.lifetimes import ENDS, TIMED
from proxy.policy.model import Keyspace, Policies
from proxy.policy.patterns import Pattern, confused, parse_characters
from proxy.policy.rights import Vocabulary
from proxy.units import show_size
from proxy.validation import Location

_COLLECTIONS = ("hash", "list", "set", "zset", "stream")

# What a write of can be told as fields and their values.
_TOLD_LATER = ("hash", "string", "json", "counter")

# Of what is bound to a connection.
_BOUND = ("string", "json", "set")

_SHARERS = ("client", "user", "ip", "key", "keyspace", "global")

# An exact window keeps the time of each cell; beyond this gcra is the better answer.
_MOST_EXACT = 1000


class Complaint(NamedTuple):
    """What is wrong where, below a keyspace.

    `absent` is what is missed: a field of the keyspace, or a name of the part `elsewhere`.
    """

    location: Location
    message: str
    absent: str | None = None
    elsewhere: str = ""


def _durable(own: Keyspace) -> Iterator[Complaint]:
    """Locks and state are neither stale, evicted, nor read from where they may be old."""
    stale = [f for f in ("stale_while_revalidate", "stale_if_error") if getattr(own.freshness, f)]
    if own.kind != "cache" or own.security:
        what = "with security: true" if own.kind == "cache" else f"of kind {own.kind}"
        for field in stale:
            yield Complaint(("freshness", field), f"a keyspace {what} is never served stale; "
                            "leave it out")  # fmt: skip
        if own.fallback.reads == "stale":
            allowed = "origin" if own.decided else "origin, error"
            yield Complaint(("fallback", "reads"), f"a keyspace {what} is never served stale; "
                            f"allowed: {allowed}")  # fmt: skip
    if own.kind != "cache" and own.transactions == "split":
        yield Complaint(("transactions",), f"a transaction over keys of kind {own.kind} is done "
                        "whole or not at all; allowed: single")  # fmt: skip
    if not own.durable:
        return
    if own.evict not in (None, "never"):
        yield Complaint(("evict",), f"a key of kind {own.kind} is never evicted; allowed: never")
    if own.reads == "replica":
        yield Complaint(("reads",), f"a replica may be behind, which a key of kind {own.kind} must "
                        "not be; allowed: primary")  # fmt: skip
    if own.near is not None:
        yield Complaint(("near",), f"a copy in the sidecar may be old, which a key of kind "
                        f"{own.kind} must not be; leave near out")  # fmt: skip


def _ttl(own: Keyspace) -> Iterator[Complaint]:
    ttl = own.ttl
    bounds = [("min", ttl.min), ("default", ttl.default), ("max", ttl.max)]
    given = [(name, value) for name, value in bounds if value is not None]
    for (low, shorter), (high, longer) in pairwise(given):
        if shorter > longer:
            yield Complaint(("ttl", low), f"ttl.{low} is longer than ttl.{high}")
    if ttl.absent == "reject" and own.type not in (*TIMED, None):
        yield Complaint(("ttl", "missing"), f"no command that writes a {own.type} can say a time "
                        "to live, so all are refused; allowed: apply, allow", "ttl")  # fmt: skip
    if ttl.default is None:
        if ttl.missing == "apply":
            yield Complaint(("ttl", "missing"), "apply needs ttl.default", "ttl")
        if ttl.refresh != "never":
            yield Complaint(("ttl", "refresh"), f"{ttl.refresh} needs ttl.default", "ttl")
        if ttl.jitter:
            yield Complaint(("ttl", "jitter"), "jitter shortens ttl.default, which is not given",
                            "ttl")  # fmt: skip
        if own.kind == "rate_limit":
            yield Complaint(("ttl", "default"), "a counter of kind rate_limit needs a time to live,"
                            " or its window never ends", "ttl")  # fmt: skip


def _hash_tag(own: Keyspace) -> Iterator[Complaint]:
    if own.hash_tag is None:
        return
    if isinstance(own.hash_tag, HashTagWord):
        return
    if own.hash_tag not in own.key.names:
        yield no_segment(own.key, ("hash_tag",), own.hash_tag)
        return
    before = own.key.parts[: own.key.position(own.hash_tag)]
    if any(isinstance(part, bytes) and b"{" in part for part in before):
        yield Complaint(("hash_tag",), "Redis takes the first {…} of a name for the slot, and the "
                        "key has a brace before this segment")  # fmt: skip


def _grammar(own: Keyspace) -> Iterator[Complaint]:
    """A pattern whose own text is not well-formed never matches anything."""
    grammar = own.key_grammar
    if grammar.characters is not None:
        flags = parse_characters(grammar.characters)
        literal = own.key.literal.decode()
        wrong = sorted({char for char in literal if not all(flags[b] for b in char.encode())})
        if wrong:
            yield Complaint(("key",), f"can never match: {quote(''.join(wrong))} is not among the "
                            f"characters of key_grammar, {grammar.characters}")  # fmt: skip
    shortest = len(own.key.literal) + len(own.key.segments)
    if shortest > grammar.max_bytes:
        yield Complaint(("key",), f"can never match: it has at least {shortest} bytes and "
                        f"key_grammar.max_bytes is {grammar.max_bytes}")  # fmt: skip


def _types(own: Keyspace) -> Iterator[Complaint]:
    collection = own.collection
    if collection.max_items is not None and own.type not in (*_COLLECTIONS, None):
        yield Complaint(("collection",), f"a {own.type} has no members; type: hash, list, set, zset"
                        " or stream has", "type")  # fmt: skip
    elif collection.keep is not None and collection.keep not in ENDS.get(own.type or "", ()):
        allowed = ", ".join(ENDS.get(own.type or "", ())) or "none"
        yield Complaint(("collection", "keep"), f"cannot be kept of type {own.type or 'unknown'}; "
                        f"allowed: {allowed}", "type")  # fmt: skip
    if not collection.exact and own.type != "stream":
        yield Complaint(("collection", "exact"), "only a stream is trimmed roughly", "type")
    if own.judged and own.type == "counter":
        yield Complaint(("value",), "a counter is written by counting, and JSON is judged where it "
                        "is written whole; type: json is", "type")  # fmt: skip
    if own.write.merge == "add" and own.type not in ("hash", "zset", "counter", None):
        yield Complaint(("write", "merge"), f"a {own.type} cannot be added up", "type")
    elif own.write.mode == "behind" and own.type not in (*_TOLD_LATER, None):
        yield Complaint(("write", "mode"), f"the order within a {own.type} cannot be journalled; "
                        f"behind is for type {', '.join(_TOLD_LATER)}", "type")  # fmt: skip


def _origin(own: Keyspace) -> Iterator[Complaint]:
    if own.origin is not None:
        at = ("origin", "read")
        yield from known_parameters(own.key, at, own.origin.read, own.key.names)
        if not sql.reads(own.origin.read):
            yield Complaint(at, "must only read: it begins with SELECT, WITH, VALUES or TABLE")
        return
    for field in ("stale_while_revalidate", "stale_if_error", "negative"):
        if getattr(own.freshness, field):
            yield Complaint(("freshness", field), "needs an origin to fetch from", "origin")
    if own.fallback.reads == "origin" and own.kind != "lock":
        yield Complaint(("fallback", "reads"), "origin needs the block origin", "origin")
    if own.drift is not None:
        yield Complaint(("drift",), "needs an origin to compare with", "origin")
    if own.on_loss == "refill":
        yield Complaint(("on_loss",), "refill needs an origin to read from", "origin")


def _restore(own: Keyspace) -> Iterator[Complaint]:
    if own.on_loss == "restore" and own.restore is None and own.kind != "lock":
        yield Complaint(("on_loss",), "restore needs the block restore: {sql: …}", "restore")
    if own.restore is not None:
        if own.on_loss != "restore":
            yield Complaint(("restore",), "is given, but on_loss is not restore", "on_loss")
        if not sql.reads(own.restore.sql) or not sql.single(own.restore.sql):
            yield Complaint(("restore", "sql"), "must be one statement that only reads")
        if sql.parameters(own.restore.sql):
            yield Complaint(("restore", "sql"), "reads all keys, and takes no parameters")


def _rate(own: Keyspace) -> Iterator[Complaint]:
    return _limits(("rate",), own.rate, own.key.names)


def _limits(
    at: Location, limits: Iterable[RateLimit], segments: Sequence[str]
) -> Iterator[Complaint]:
    """Yield what is wrong with rate limits, of keys that have these segments."""
    for index, limit in enumerate(limits):
        here = (*at, index)
        if limit.per not in _SHARERS and limit.per not in segments:
            allowed = (*_SHARERS, *segments)
            yield Complaint((*here, "per"), f"{quote(limit.per)} is no segment of the key; allowed:"
                            f" {', '.join(allowed)}{suggest(limit.per, allowed)}")  # fmt: skip
        if limit.algorithm == "window" and limit.limit.amount > _MOST_EXACT:
            yield Complaint(
                (*here, "limit"), f"window is exact up to {_MOST_EXACT}; use gcra beyond"
            )
        if limit.algorithm == "window" and limit.burst is not None:
            yield Complaint((*here, "burst"), "window has no burst; leave it out or use gcra")
        if limit.scope == "shared" and limit.per == "client":
            yield Complaint(
                (*here, "scope"), "a connection belongs to one sidecar; say scope: local"
            )
        if limit.scope == "local" and "on_unavailable" in limit.model_fields_set:
            yield Complaint(
                (*here, "on_unavailable"), "a local limit needs no Redis; say scope: shared"
            )


def _bound(own: Keyspace) -> Iterator[Complaint]:
    if own.bound is None:
        return
    if own.backed:
        yield Complaint(("bound",), "what PostgreSQL has does not go with a connection; leave it "
                        "out")  # fmt: skip
    if own.type not in _BOUND:
        yield Complaint(("bound",), "needs a type of which it is known what a connection wrote: "
                        f"{', '.join(_BOUND)}", "type")  # fmt: skip
    if own.ttl.default is None:
        yield Complaint(("bound",), "a sidecar that is killed takes nothing away, so keys need a "
                        "time to live: ttl: {default: 1h}", "ttl")  # fmt: skip


_OWN_CHECKS: tuple[Callable[[Keyspace], Iterator[Complaint]], ...] = (
    _durable, _ttl, _hash_tag, _grammar, _types, _origin, _restore, _rate, _bound,
)  # fmt: skip


def check_keyspace(own: Keyspace) -> Iterator[Complaint]:
    """Yield what is wrong within one keyspace, its defaults included."""
    for check in _OWN_CHECKS:
        yield from check(own)


def check_names(policies: Policies, vocabulary: Vocabulary) -> Iterator[Complaint]:
    """Yield names that nothing has: clusters, commands, keyspaces. Locations are whole."""
    places: list[tuple[Location, str]] = [(("defaults", "cluster"), policies.defaults.cluster)]
    if "cluster" not in policies.defaults.model_fields_set:
        places.clear()
    for name, own in policies.keyspaces.items():
        if "cluster" in own.model_fields_set:
            places.append((("keyspaces", name, "cluster"), own.cluster))
    for name, channel in policies.channels.items():
        places.append((("channels", name, "cluster"), channel.cluster))
    places += [
        (("commands", "flush", number), name)
        for number, name in enumerate(policies.commands.flush or ())
    ]
    for at, cluster in places:
        if vocabulary.clusters is not None and cluster not in vocabulary.clusters:
            allowed = ", ".join(vocabulary.clusters)
            yield Complaint(at, f"{quote(cluster)} is no cluster of the configuration; allowed: "
                            f"{allowed}{suggest(cluster, vocabulary.clusters)}")  # fmt: skip
    yield from _check_added(policies, vocabulary)
    yield from _check_commands(policies, vocabulary.extended(policies))
    for name, role in policies.roles.items():
        for index, keyspace in enumerate(role.keyspaces or ()):
            if keyspace not in policies.keyspaces:
                yield no_keyspace(policies, ("roles", name, "keyspaces", index), keyspace)
        yield from _limits(("roles", name, "rate"), role.rate, ())
    yield from _check_channels(policies)


def _check_channels(policies: Policies) -> Iterator[Complaint]:
    """Yield rights to channels, and of roles, that nothing describes."""
    for name, role in policies.roles.items():
        for index, channel in enumerate(role.channels or ()):
            if channel not in policies.channels:
                message = f"{quote(channel)} is no channel{suggest(channel, policies.channels)}"
                at = ("roles", name, "channels", index)
                yield Complaint(at, message, channel, "channels")
    roles = {"default", *policies.roles}
    for name, own in policies.channels.items():
        for field, named in (("publish", own.publish), ("subscribe", own.subscribe)):
            for index, role_name in enumerate(named or ()):
                if role_name not in roles:
                    yield Complaint(("channels", name, field, index), f"{quote(role_name)} is no "
                                    f"role{suggest(role_name, roles)}", role_name, "roles"
                                    )  # fmt: skip
    names = list(policies.channels)
    for one, other in sorted(set(confused([own.channel for own in policies.channels.values()]))):
        yield Complaint(
            ("channels", names[other], "channel"),
            f"can match the same names as {quote(policies.channels[names[one]].channel.text)} of "
            f'channel "{names[one]}", and nothing decides between them',
        )


def _check_added(policies: Policies, vocabulary: Vocabulary) -> Iterator[Complaint]:
    names = {row.name.decode() for row in vocabulary.rows}
    for index, own in enumerate(policies.commands.add):
        if own.name.lower() in names:
            yield Complaint(("commands", "add", index, "name"),
                            f"{quote(own.name)} is a command already")  # fmt: skip
        names.add(own.name.lower())


def _check_commands(policies: Policies, vocabulary: Vocabulary) -> Iterator[Complaint]:
    lists: list[tuple[Location, tuple[str, ...]]] = [
        (("commands", "deny"), policies.commands.deny),
    ]
    rights = [
        (("defaults",), policies.defaults.commands),
        *((("keyspaces", name), own.commands) for name, own in policies.keyspaces.items()),
        *((("roles", name), role.commands) for name, role in policies.roles.items()),
    ]
    for at, held in rights:
        lists.append(((*at, "commands", "allow"), held.allow or ()))
        lists.append(((*at, "commands", "deny"), held.deny))
    rates = [
        *((("keyspaces", name), own.rate) for name, own in policies.keyspaces.items()),
        *((("roles", name), role.rate) for name, role in policies.roles.items()),
    ]
    for at, limits in rates:
        for index, limit in enumerate(limits):
            lists.append(((*at, "rate", index, "commands"), limit.commands))
    for where, words in lists:
        for index, word in enumerate(words):
            try:
                vocabulary.commands(word)
            except ValueError as error:
                yield Complaint((*where, index), str(error))


def check_overlaps(policies: Policies, place: Callable[[str], str]) -> Iterator[Complaint]:
    """Yield patterns that cannot be told apart; place tells where a keyspace stands."""
    names = list(policies.keyspaces)
    for one, other in sorted(set(confused([own.key for own in policies.keyspaces.values()]))):
        first, second = names[one], names[other]
        pattern = policies.keyspaces[first].key.text
        yield Complaint(
            ("keyspaces", second, "key"),
            f'can match the same keys as {quote(pattern)} of keyspace "{first}" at {place(first)}, '
            "and nothing decides between them; give one of them more literal text or a narrower "
            "type",
        )


def check_budgets(policies: Policies, vocabulary: Vocabulary) -> Iterator[Complaint]:
    """Yield for each cluster the budget with which all up to it are more than its memory."""
    clusters = vocabulary.clusters or ()
    sole = clusters[0] if len(clusters) == 1 else None
    spent = dict.fromkeys(vocabulary.memory, 0)
    for name, own in policies.effective.items():
        cluster = own.cluster if sole is None else sole
        memory, before = vocabulary.memory.get(cluster), spent.get(cluster, 0)
        spent[cluster] = before + (own.memory.budget or 0)
        if memory is not None and before <= memory < spent[cluster]:
            yield Complaint(("keyspaces", name, "memory", "budget"), "with this the budgets of "
                            f"cluster {quote(cluster)} come to {show_size(spent[cluster])}, and "
                            f"its memory is {show_size(memory)}")  # fmt: skip


def mapped(
    key: Pattern, at: Location, mapping: Mapping[str, str], *, complete: bool
) -> Iterator[Complaint]:
    """Yield segments that a pattern does not have, and those that are missing."""
    for segment in mapping:
        if segment not in key.names:
            yield no_segment(key, (*at, segment), segment)
    missing = [name for name in key.names if name not in mapping]
    if complete and missing:
        have = "segment {} of {} has" if len(missing) == 1 else "segments {} of {} have"
        named = have.format(", ".join(missing), key.text)
        yield Complaint(at, f"the key cannot be derived: the {named} no column")


def no_segment(key: Pattern, at: Location, name: str) -> Complaint:
    allowed = ", ".join(key.names) or "none, the key has no segment"
    return Complaint(at, f"{quote(name)} is no segment of {key.text}; allowed: {allowed}"
                     f"{suggest(name, key.names)}")  # fmt: skip


def no_keyspace(policies: Policies, at: Location, name: str) -> Complaint:
    hint = suggest(name, policies.keyspaces)
    return Complaint(at, f"there is no keyspace {quote(name)}{hint}", name, "keyspaces")


def known_parameters(
    key: Pattern, at: Location, text: str, allowed: Sequence[str]
) -> Iterator[Complaint]:
    """Yield parameters of a statement that nothing gives, and more than one statement."""
    for name in sql.parameters(text):
        if name not in allowed:
            yield Complaint(at, f"the parameter :{name} is no segment of {key.text}; allowed: "
                            f"{', '.join(allowed)}{suggest(name, allowed)}")  # fmt: skip
    if not sql.single(text):
        yield Complaint(at, "must be one statement")
