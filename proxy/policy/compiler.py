"""Policies and the command table to the rows of a `wire.Ruleset`.

Used by `app` at start and reload, and by `explain`. The result holds everything that is judged per
command; nothing of the policies is looked at while traffic runs.

Always true: role 0 is `default`; keyspaces keep the order of the files; the same input gives the
same rows.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from proxy import commands, errors, wire
from proxy.documents import Mistake
from proxy.effects import ANY, TYPE_BITS
from proxy.plans import Plans
from proxy.policy import bounds, duties, rates
from proxy.policy.aliases import renamed
from proxy.policy.blocks import CommandRights, HashTagWord
from proxy.policy.loader import PolicyMistakes, load
from proxy.policy.model import Keyspace, Policies, Role
from proxy.policy.patterns import parse_characters, typed_characters
from proxy.policy.planning import age_of, plans_of
from proxy.policy.rights import UNNAMED, Vocabulary
from proxy.policy.scripts import with_scripts
from proxy.wire import rules

# The cluster whose keys decide who holds what; see `_flushable`.
LOCKS = "locks"

# How long before its time a key may be fetched again, in milliseconds: twenty times what a row
# takes to read. Whoever is so early is chosen at random, and seldom (XFetch).
EARLY_MS = 1000

# From the flag of what is allowed to that of what is denied.
_TURNED = bytes([1, 0]).ljust(256, b"\0")

# The role of whoever is given no other. Redis-compatible unless the policies say otherwise.
DEFAULT_ROLE = "default"


class Arguments(TypedDict):
    """What `wire.Ruleset` is made from."""

    commands: Sequence[rules.Command]
    keyspaces: Sequence[rules.Keyspace]
    roles: Sequence[rules.Role]
    families: Sequence[str]
    errors: rules.Errors
    default_cluster: int
    reject_unmatched: bool
    max_key_bytes: int
    split_unmatched: bool
    flushable: Sequence[int]
    channels: Sequence[rules.Channel]
    plans: Plans


def read(path: Path | None, clusters: tuple[str, ...] | None) -> Policies:
    """Return the policies of a folder or a file, with all commands that are known.

    Without clusters any name of one is taken. Raises PolicyMistakes.
    """
    return load(path, Vocabulary(commands.ROWS, commands.CATEGORIES, clusters))


def clusters_of(policies: Policies) -> tuple[str, ...]:
    """Return the clusters that policies name."""
    named = {own.cluster for own in policies.effective.values()}
    named |= {own.cluster for own in policies.channels.values()}
    return tuple(sorted(named | {policies.defaults.cluster}))


def from_files(
    path: Path | None, clusters: tuple[str, ...] | None
) -> tuple[wire.Ruleset, tuple[str, ...]]:
    """Return the rules of a folder or a file, for all commands, and the clusters they are for.

    Without a configuration, clusters are those that the rules name. Raises PolicyMistakes.
    """
    policies = read(path, clusters)
    clusters = clusters or clusters_of(policies)
    rows, families, categories = commands.ROWS, commands.FAMILIES, commands.CATEGORIES
    return compile(policies, rows, families, categories, clusters), clusters


def compile(
    policies: Policies,
    rows: Sequence[rules.Command],
    families: Sequence[str],
    categories: Mapping[str, Collection[bytes]],
    clusters: Sequence[str],
) -> wire.Ruleset:
    """Return the rules as the data plane executes them."""
    return wire.Ruleset(**ruleset_arguments(policies, rows, families, categories, clusters))


def ruleset_arguments(
    policies: Policies,
    rows: Sequence[rules.Command],
    families: Sequence[str],
    categories: Mapping[str, Collection[bytes]],
    clusters: Sequence[str],
) -> Arguments:
    """Return the rows of the rules, before the data plane packs them."""
    vocabulary = Vocabulary(rows, categories, clusters).extended(policies)
    concerned = duties.Duties(vocabulary.rows)
    return Arguments(
        commands=renamed(
            with_scripts(vocabulary.rows, policies),
            policies.commands.rename,
        ),
        keyspaces=[
            _keyspace(name, own, vocabulary, _cluster(own.cluster, policies, clusters))._replace(
                duties=concerned.of(own), **_values(name, own, policies)
            )
            for name, own in policies.effective.items()
        ],
        roles=_roles(policies, vocabulary, _cluster(policies.defaults.cluster, policies, clusters)),
        families=families,
        errors=errors.DATA_PLANE,
        default_cluster=_cluster(policies.defaults.cluster, policies, clusters),
        reject_unmatched=policies.defaults.unmatched == "reject",
        max_key_bytes=policies.defaults.unmatched_max_bytes,
        split_unmatched=policies.defaults.transactions == "split",
        flushable=_flushable(policies, clusters),
        channels=_channels(policies, clusters),
        plans=plans_of(policies, lambda name: _cluster(name, policies, clusters)),
    )


def _flushable(policies: Policies, clusters: Sequence[str]) -> Sequence[int]:
    """Return the clusters that may be emptied: what must not be lost is only where it is named."""
    if policies.commands.flush is not None:
        return [_cluster(name, policies, clusters) for name in policies.commands.flush]
    kept = {_cluster(own.cluster, policies, clusters)
            for own in policies.effective.values() if own.durable}  # fmt: skip
    return [i for i, name in enumerate(clusters) if i not in kept and name != LOCKS]


def _cluster(name: str, policies: Policies, clusters: Sequence[str]) -> int:
    """Return the index of a cluster. With one cluster, whoever names none means that one."""
    if name in clusters:
        return clusters.index(name)
    if len(clusters) == 1 and "cluster" not in policies.defaults.model_fields_set:
        return 0
    message = f'no cluster "{name}" is configured; there is: {", ".join(clusters) or "none"}'
    raise PolicyMistakes([Mistake("policies", 0, 0, message)])


def _keyspace(name: str, own: Keyspace, vocabulary: Vocabulary, cluster: int) -> rules.Keyspace:
    tag: int | bytes | None = None
    if isinstance(own.hash_tag, HashTagWord):
        tag = own.hash_tag.literal.encode()
    elif own.hash_tag is not None:
        tag = own.key.position(own.hash_tag)
    grammar = own.key_grammar
    return rules.Keyspace(
        name=name,
        pattern=own.key.parts,
        cluster=cluster,
        hash_tag=tag,
        characters=_characters(own),
        max_key_bytes=grammar.max_bytes,
        denied=vocabulary.allowed(own.commands).translate(_TURNED),
        bounds=bounds.of(own.commands, f"keyspace '{name}'", vocabulary.indexes),
        type_bit=TYPE_BITS[own.type] if own.type is not None else ANY,
        max_value_bytes=own.value.max_bytes or 0,
        max_member_bytes=own.collection.max_member_bytes or 0,
        value_error=errors.too_large(name, "value", own.value.max_bytes or 0),
        member_error=errors.too_large(name, "member", own.collection.max_member_bytes or 0),
        enforced=bytes(trial.refused for trial in duties.trials(own)),
        noted=bytes(trial.told for trial in duties.trials(own)),
        key_error=errors.key_refused(name, _grammar_in_words(own)),
        brace_error=errors.key_refused(
            name, "its hash_tag is put in between braces: a key has none"
        ),
        denied_error=errors.line(f"NOPERM policy denies this command in keyspace '{name}'"),
        split_transactions=own.transactions == "split" and own.kind == "cache",
        push_back=own.undelivered == "push_back",
        rates=rates.of_keyspace(name, own, vocabulary, cluster),
        lifetime=_lifetime(own),
        growth=rules.Growth(
            own.collection.max_items or 0,
            own.collection.keep in ("lowest", "oldest"),
            own.collection.exact,
        ),
        ttl_error=errors.without_time(name),
        ageing=_ageing(own),
        detours=own.backed and own.fallback.reads != "error",
        written=own.write.mode == "none",
        decided=own.decided,
        bound=own.bound is not None,
    )


class _Judgement(TypedDict, total=False):
    """What values of a keyspace are held to."""

    json_errors: Sequence[bytes]
    fit: Callable[[bytes], bytes | None] | None
    part_error: bytes


def _values(name: str, own: Keyspace, policies: Policies) -> _Judgement:
    if not own.judged:
        return _Judgement()
    return _Judgement(
        json_errors=[errors.no_json(name, fault) for fault in wire.JSON_FAULTS],
        fit=policies.schemas.get(name),
        part_error=errors.value_in_parts(name),
    )


def _lifetime(own: Keyspace) -> rules.Lifetime:
    ttl = own.ttl
    default, shortest, longest = (
        0 if seconds is None else max(1, round(seconds * 1000))
        for seconds in (ttl.default, ttl.min, ttl.max)
    )
    return rules.Lifetime(
        default,
        shortest,
        longest,
        ttl.jitter or 0.0,
        rules.Missing[ttl.absent.upper()],
        rules.Refresh[ttl.refresh.upper()],
    )


def _ageing(own: Keyspace) -> rules.Ageing:
    age = age_of(own)
    return rules.Ageing(age.window_ms, age.stale_ms, EARLY_MS if age.early else 0)


def _characters(own: Keyspace) -> bytes | None:
    """Return the flags of the characters that may stand in a key, or None for no such rule.

    A typed segment is judged by its type, so what the type takes is allowed beside the grammar.
    """
    if own.key_grammar.characters is None:
        return None
    flags = bytearray(parse_characters(own.key_grammar.characters))
    for byte in typed_characters(own.key):
        flags[byte] = 1
    return bytes(flags)


def _grammar_in_words(own: Keyspace) -> str:
    grammar = own.key_grammar
    characters = grammar.characters or "all but control characters"
    return f"key_grammar allows {grammar.max_bytes} bytes of {characters}"


def _roles(policies: Policies, vocabulary: Vocabulary, cluster: int) -> list[rules.Role]:
    return [
        rules.Role(
            name,
            vocabulary.allowed(_rights(role), policies.commands.deny),
            rules.Limits(**role.limits.model_dump()),
            role.channels is None,
            _reach(role, policies),
            _patterns(role),
            bounds.of(role.commands, f"role '{name}'", vocabulary.indexes),
            rates=rates.of_role(name, role, vocabulary, cluster),
        )
        for name, role in _all_roles(policies).items()
    ]


def _rights(role: Role) -> CommandRights:
    """Return what a role may send; one that may not name all keys may not reach them otherwise."""
    own = role.commands
    if role.keys is None and role.keyspaces is None:
        return own
    named = {word.casefold() for word in own.allow or ()}
    closed = tuple(word for word in UNNAMED if word.casefold() not in named)
    return own.model_copy(update={"deny": (*own.deny, *closed)})


def _reach(role: Role, policies: Policies) -> bytes | None:
    """Return a flag per keyspace and one for keys of none, or None where all may be used."""
    if role.keyspaces is None:
        return None
    return bytes([name in role.keyspaces for name in policies.effective] + [0])


def _patterns(role: Role) -> Sequence[Sequence[bytes | rules.Segment]] | None:
    """Return the patterns of the keys that may be named, each once, whatever its segments say."""
    if role.keys is None:
        return None
    found = {
        tuple(part if isinstance(part, bytes) else part.kind for part in pattern.parts): pattern
        for pattern in role.keys
    }
    return [pattern.parts for pattern in found.values()]


def _all_roles(policies: Policies) -> Mapping[str, Role]:
    return {DEFAULT_ROLE: policies.roles.get(DEFAULT_ROLE, Role()), **policies.roles}


def _channels(policies: Policies, clusters: Sequence[str]) -> list[rules.Channel]:
    roles = _all_roles(policies)

    def flags(channel: str, named: Collection[str] | None) -> bytes:
        """Return a flag per role: what it may is said on both sides."""
        return bytes(
            (named is None or name in named) and (role.channels is None or channel in role.channels)
            for name, role in roles.items()
        )

    return [
        rules.Channel(
            name,
            own.channel.parts,
            _cluster(own.cluster, policies, clusters),
            flags(name, own.publish),
            flags(name, own.subscribe),
        )
        for name, own in policies.channels.items()
    ]
