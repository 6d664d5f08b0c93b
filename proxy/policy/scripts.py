"""Whether all keys of a script are in one slot, as a cluster needs them.

The loader gives every script to `check_scripts`. A key is a template of the script's arguments; the
keyspace of the same shape says which part of it decides the slot.
"""

from collections.abc import Iterator
from typing import NamedTuple

from proxy.documents import quote
from proxy.policy.blocks import HashTagWord
from proxy.policy.checks import Complaint
from proxy.policy.model import Keyspace, Policies
from proxy.policy.patterns import Pattern


class _Place(NamedTuple):
    """What decides where a key lives. The tag is an argument in braces, or text."""

    cluster: str
    tag: str


def check_scripts(policies: Policies) -> Iterator[Complaint]:
    """Yield keys of scripts that are not where the script's first key is."""
    shapes = {_shape(own.key): own for own in policies.effective.values()}
    for name, script in policies.scripts.items():
        places = [_place(key, shapes.get(_shape(key)), policies) for key in script.keys]
        for index, (key, place) in enumerate(zip(script.keys, places, strict=True)):
            first = places[0]
            at = ("scripts", name, "keys", index)
            if place.cluster != first.cluster:
                yield Complaint(
                    at,
                    f"{quote(key.text)} lives on {place.cluster} and the first key on "
                    f"{first.cluster}; a script runs on one node",
                )
            elif place.tag != first.tag:
                yield Complaint(
                    at,
                    f"the slot of {quote(key.text)} is decided by {place.tag}, that of the first "
                    f"key by {first.tag}; give their keyspaces a hash_tag that is the same",
                )


def _shape(key: Pattern) -> tuple[bytes | None, ...]:
    """Return the literal text between segments, whatever those are called."""
    return tuple(part if isinstance(part, bytes) else None for part in key.parts)


def _place(key: Pattern, own: Keyspace | None, policies: Policies) -> _Place:
    if own is None:
        return _Place(policies.defaults.cluster, key.text)
    if own.hash_tag is None:
        return _Place(own.cluster, key.text)
    if isinstance(own.hash_tag, HashTagWord):
        return _Place(own.cluster, own.hash_tag.literal)
    # What the keyspace calls its segment, the script may call otherwise.
    index = own.key.names.index(own.hash_tag) if own.hash_tag in own.key.names else 0
    return _Place(own.cluster, f"{{{key.names[index]}}}" if key.names else key.text)
