"""Policies and the command table to the rows of a `wire.Ruleset`.

Used by `app` at start and reload, and by `explain`. The result holds everything that is judged per
command; nothing of the policies is looked at while traffic runs.

Always true: role 0 is `default`; keyspaces keep the order of the files; the same input gives the
same rows.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from proxy import commands, errors, wire
from proxy.documents import Mistake
from proxy.policy.blocks import HashTagWord
from proxy.policy.loader import PolicyMistakes, load
from proxy.policy.model import Keyspace, Policies, Role
from proxy.policy.patterns import parse_characters, typed_characters
from proxy.policy.rights import Vocabulary
from proxy.wire import rules

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


def from_files(
    path: Path | None, clusters: tuple[str, ...] | None
) -> tuple[wire.Ruleset, tuple[str, ...]]:
    """Return the rules of a folder or a file, for all commands, and the clusters they are for.

    Without a configuration, clusters are those that the rules name. Raises PolicyMistakes.
    """
    policies = load(path, Vocabulary(commands.ROWS, commands.CATEGORIES, clusters))
    if clusters is None:
        named = {own.cluster for own in policies.effective.values()}
        clusters = tuple(sorted(named | {policies.defaults.cluster}))
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
    vocabulary = Vocabulary(rows, categories, clusters)
    return Arguments(
        commands=rows,
        keyspaces=[
            _keyspace(name, own, vocabulary, _cluster(own.cluster, policies, clusters))
            for name, own in policies.effective.items()
        ],
        roles=_roles(policies, vocabulary),
        families=families,
        errors=errors.DATA_PLANE,
        default_cluster=_cluster(policies.defaults.cluster, policies, clusters),
        reject_unmatched=policies.defaults.unmatched == "reject",
        max_key_bytes=policies.defaults.unmatched_max_bytes,
    )


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
        denied=bytes(1 - flag for flag in vocabulary.allowed(own.commands)),
        key_error=errors.key_refused(name, _grammar_in_words(own)),
        denied_error=errors.line(f"NOPERM policy denies this command in keyspace '{name}'"),
    )


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


def _roles(policies: Policies, vocabulary: Vocabulary) -> list[rules.Role]:
    roles = {DEFAULT_ROLE: policies.roles.get(DEFAULT_ROLE, Role()), **policies.roles}
    return [
        rules.Role(
            name,
            vocabulary.allowed(role.commands, policies.commands.deny),
            rules.Limits(**role.limits.model_dump()),
        )
        for name, role in roles.items()
    ]
