"""Scripts that are offered as commands, checked and compiled.

The loader gives all of them to `check_scripts`, the compiler to `with_scripts`. A key is a template
of the script's arguments; the keyspace of the same shape says which part of it decides the slot,
and all keys of a script are in one, as a cluster needs them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from proxy import errors
from proxy.documents import quote, suggest
from proxy.policy.blocks import HashTagWord
from proxy.policy.checks import Complaint
from proxy.policy.model import Keyspace, Policies, Script
from proxy.policy.patterns import Pattern
from proxy.policy.rights import Vocabulary
from proxy.wire import rules, scripts


class _Place(NamedTuple):
    """What decides where a key lives. The tag is an argument in braces, or text."""

    cluster: str
    tag: str


def with_scripts(rows: Sequence[rules.Command], policies: Policies) -> list[rules.Command]:
    """Return the rows, those of scripts with what they run."""
    offered = {
        own.name.lower().encode(): _compiled(own, policies.bodies[name])
        for name, own in policies.scripts.items()
    }
    return [
        row._replace(script=offered[row.name])
        if row.keys.kind is rules.KeyKind.RENDERED and row.name in offered
        else row
        for row in rows
    ]


def _compiled(own: Script, body: bytes) -> scripts.Script:
    def filled(part: bytes | rules.Segment) -> bytes | scripts.Filled:
        if isinstance(part, bytes):
            return part
        # An address has colons of its own; what it is held to is said by the keyspace.
        return scripts.Filled(own.arguments.index(part.name), part.kind in ("path", "ip"))

    name = own.name.lower()
    return scripts.Script(
        # Redis knows scripts by this digest; nothing is proven by it.
        digest=hashlib.sha1(body, usedforsecurity=False).hexdigest().encode(),
        body=body,
        keys=tuple(tuple(map(filled, key.parts)) for key in own.keys),
        arguments=own.arguments,
        more=own.more,
        reads=own.reads,
        mapped=own.reply == "map",
        lock=own.lock,
        colon_error=errors.colon_in_argument(name),
        keys_error=errors.keys_of_script(name),
    )


def check_scripts(policies: Policies, vocabulary: Vocabulary) -> Iterator[Complaint]:
    """Yield what is wrong with scripts, but for their files."""
    yield from _check_names(policies, vocabulary)
    shapes = {_shape(own.key): own for own in policies.effective.values()}
    for name, script in policies.scripts.items():
        for complaint in (
            *_check_arguments(script),
            *_check_lock(script, shapes),
            *_check_slots(script, shapes, policies),
        ):
            yield complaint._replace(location=("scripts", name, *complaint.location))


def _check_names(policies: Policies, vocabulary: Vocabulary) -> Iterator[Complaint]:
    """Yield names that another command or script has."""
    taken = {row.name.decode(): "a command" for row in vocabulary.rows}
    taken |= {own.name.lower(): "an added command" for own in policies.commands.add}
    for name, script in policies.scripts.items():
        # A function's name has no dots: both names must belong to this script alone.
        for called in dict.fromkeys((script.name.lower(), script.name.lower().replace(".", "_"))):
            if called in taken:
                yield Complaint(
                    ("scripts", name, "name"),
                    f"{quote(script.name)} is the name of {taken[called]} already",
                )
                break
        taken[script.name.lower()] = f"script {quote(name)}"
        taken[script.name.lower().replace(".", "_")] = f"script {quote(name)}"


def _check_arguments(script: Script) -> Iterator[Complaint]:
    """Yield arguments that are named twice, and parts of keys that are none of them."""
    for index, argument in enumerate(script.arguments):
        if argument in script.arguments[:index]:
            yield Complaint(("arguments", index), f"{quote(argument)} stands in it twice")
    if script.more in script.arguments:
        yield Complaint(("more",), f"{quote(str(script.more))} is one of the arguments")
    for index, key in enumerate(script.keys):
        for part in (part for part in key.names if part not in script.arguments):
            if part == script.more:
                yield Complaint(("keys", index), f"{{{part}}} is any number of words, and a key "
                                "is made of arguments that are there")  # fmt: skip
            else:
                yield Complaint(("keys", index), f"{{{part}}} is none of its arguments"
                                f"{suggest(part, script.arguments)}")  # fmt: skip


# What each operation on a lock reads of its script's arguments, and cannot do without.
_NEEDED = {
    "acquire": ("owner",),
    "extend": ("owner",),
    "release": ("owner", "token"),
    "confirm": ("owner", "token", "booking"),
    "status": (),
    "queue": ("owner",),
    "mine": ("owner",),
}

# Those that change nothing.
_TELLING = ("status", "mine")


def _check_lock(
    script: Script, shapes: dict[tuple[bytes | None, ...], Keyspace]
) -> Iterator[Complaint]:
    """Yield what an operation on a lock needs and has not."""
    if script.lock is None:
        if script.on_unavailable == "origin":
            yield Complaint(("on_unavailable",), "PostgreSQL can do what a lock needs, and nothing "
                            "else of a script; say lock: or on_unavailable: error")  # fmt: skip
        return
    if script.reads and script.lock not in _TELLING:
        yield Complaint(("reads",), f"{script.lock} changes a lock, and would be open to who may "
                        "only read; leave it out")  # fmt: skip
    for name in _NEEDED[script.lock]:
        if name not in script.arguments:
            yield Complaint(("arguments",), f"{script.lock} needs the argument {quote(name)}"
                            f"{suggest(name, script.arguments)}")  # fmt: skip
    if script.lock == "mine" and script.keys:
        yield from _check_mine(script, shapes.values())
        return
    own = shapes.get(_shape(script.keys[0])) if script.keys else None
    if own is None or not own.decided:
        yield Complaint(("lock",), "the first key is in no keyspace of kind: lock that PostgreSQL "
                        "decides")  # fmt: skip
    elif script.lock == "confirm" and own.locks.table is None:
        yield Complaint(("lock",), "confirm makes a row of the application a sale, and these locks "
                        "have no table")  # fmt: skip


def _check_mine(script: Script, keyspaces: Iterable[Keyspace]) -> Iterator[Complaint]:
    """Yield why it is not clear whose locks are told: they are those of one keyspace.

    Its key may be that of no lock, as it is about all that an owner holds.
    """
    decided = [own for own in keyspaces if own.decided]
    limited = [own for own in decided if own.locks.per_owner is not None] or decided
    if len(limited) != 1:
        named = ", ".join(quote(own.key.text) for own in limited) or "none"
        yield Complaint(("lock",), "mine tells the locks of the one keyspace that PostgreSQL "
                        f"decides and that has per_owner; there is: {named}")  # fmt: skip
    elif limited[0].locks.per_owner is not None and len(script.arguments) < 2:
        yield Complaint(("arguments",), "mine needs an argument beside the owner: within what the "
                        f"locks of {quote(limited[0].key.text)} are counted")  # fmt: skip
    elif limited[0].locks.per_owner is None and len(script.arguments) > 1:
        other = next(name for name in script.arguments if name != "owner")
        yield Complaint(("arguments",), f"{quote(other)} would limit nothing: without per_owner of "
                        f"{quote(limited[0].key.text)} mine tells all that an owner holds; say "
                        "per_owner there, or no argument but the owner")  # fmt: skip


def _check_slots(
    script: Script, shapes: dict[tuple[bytes | None, ...], Keyspace], policies: Policies
) -> Iterator[Complaint]:
    """Yield keys that are not where the script's first key is."""
    places = [_place(key, shapes.get(_shape(key)), policies) for key in script.keys]
    for index, (key, place) in enumerate(zip(script.keys, places, strict=True)):
        first = places[0]
        if place.cluster != first.cluster:
            yield Complaint(
                ("keys", index),
                f"{quote(key.text)} lives on {place.cluster} and the first key on "
                f"{first.cluster}; a script runs on one node",
            )
        elif place.tag != first.tag:
            yield Complaint(
                ("keys", index),
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
