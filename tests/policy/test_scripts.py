"""Scripts as commands: where their keys are, and the rows that are made of them."""

import hashlib

import pytest

from proxy.wire import rules
from proxy.wire.scripts import Filled
from tests.policy.rulebook import Folder, compiled, load

KEYSPACES = """
keyspaces:
  seat_lock: {key: "seat_lock:{event_id}:{seat_id}", cluster: locks, hash_tag: event_id}
  user_locks: {key: "user_locks:{user_id}:{event_id}", cluster: locks, hash_tag: event_id}
  split: {key: "split:{user_id}:{event_id}", cluster: locks, hash_tag: user_id}
  bare: {key: "bare:{event_id}", cluster: locks}
  far: {key: "far:{event_id}", cluster: cache, hash_tag: event_id}
  word: {key: "word:{x}", cluster: locks, hash_tag: {literal: jobs}}
  words: {key: "words:{x}", cluster: locks, hash_tag: {literal: jobs}}
"""


# All that a key of these tests is made of.
ARGUMENTS = "arguments: [a, b, e, s, u, x]"


def complaints(folder: Folder, *keys: str) -> list[str]:
    listed = ", ".join(f"'{key}'" for key in keys)
    (folder.path / "lua").mkdir()
    (folder.path / "lua" / "t.lua").touch()
    return folder.complaints(
        KEYSPACES + f"scripts:\n  take: {{name: T, file: t.lua, keys: [{listed}], {ARGUMENTS}}}\n"
    )


@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("bare:{e}",),
        ("seat_lock:{e}:{s}", "user_locks:{u}:{e}"),
        ("word:{a}", "words:{b}"),
    ],
)
def test_keys_in_one_slot(folder: Folder, keys: tuple[str, ...]) -> None:
    """Keys that share the tag's argument, or its word, are together; one key always is."""
    assert complaints(folder, *keys) == []


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("seat_lock:{e}:{s}", "split:{u}:{e}"), "is decided by {u}, that of the first key by {e}"),
        (("seat_lock:{e}:{s}", "user_locks:{e}:{u}"), "is decided by {u}"),
        (("seat_lock:{e}:{s}", "bare:{e}"), "is decided by bare:{e}"),
        (("seat_lock:{e}:{s}", "word:{e}"), "is decided by jobs"),
        (("seat_lock:{e}:{s}", "far:{e}"), "lives on cache and the first key on locks"),
        (("seat_lock:{e}:{s}", "nobody:{e}"), "lives on cache"),
    ],
)
def test_keys_that_are_split(folder: Folder, keys: tuple[str, ...], told: str) -> None:
    """A key that another slot or another cluster holds is told at its place in the list."""
    found = complaints(folder, *keys)
    assert len(found) == 1
    assert told in found[0]
    assert found[0].startswith("a.yaml:11:")


OFFERED = """
scripts:
  take:
    name: SEAT.TAKE
    file: t.lua
    keys: ["seat_lock:{event}:{seat}", "{where:path}"]
    arguments: [event, seat, where]
    more: others
    reply: map
    reads: true
"""


def row_of(folder: Folder, text: str) -> rules.Command:
    (folder.path / "lua").mkdir()
    (folder.path / "lua" / "t.lua").write_text("return 1")
    ruleset = folder.compile(text)
    return ruleset.commands[ruleset.find_command(b"seat.TAKE")]


def test_a_script_is_a_row(folder: Folder) -> None:
    """A script's command has the arity of its arguments, and is a read if it says so."""
    text = OFFERED.replace(', "{where:path}"', "")
    row = row_of(folder, KEYSPACES + text)
    assert (row.name, row.arity, row.write, row.repeatable) == (b"seat.take", -4, False, True)
    assert row.path is rules.Path.LOCAL
    assert row.script is not None
    assert (row.script.body, row.script.command) == (b"return 1", b"EVALSHA_RO")
    assert row.script.digest == hashlib.sha1(b"return 1").hexdigest().encode()
    assert (row.script.mapped, row.script.more, row.script.lock) == (True, "others", None)
    folder.write(
        KEYSPACES + text.replace("    reads: true\n", "").replace("    more: others\n", "")
    )
    ruleset = compiled(load(folder.path))
    row = ruleset.commands[ruleset.find_command(b"seat.take")]
    assert (row.arity, row.write, row.repeatable) == (4, True, False)


def test_templates_name_arguments(folder: Folder) -> None:
    """A part of a key is the place of its argument; what takes all that follows may have colons."""
    text = OFFERED.replace('["seat_lock:{event}:{seat}", "{where:path}"]', '["at:{where:path}"]')
    script = row_of(folder, KEYSPACES + text).script
    assert script is not None
    assert script.keys == ((b"at:", Filled(2, True)),)
    assert script.arguments == ("event", "seat", "where")


def test_words_that_mean_scripts(folder: Folder) -> None:
    """Rights name a script's command by its name or its category."""
    rights = "roles: {a: {commands: {allow: [SEAT.TAKE]}}, b: {commands: {deny: ['@read']}}}\n"
    text = KEYSPACES + OFFERED.replace(', "{where:path}"', "") + rights
    (folder.path / "lua").mkdir()
    (folder.path / "lua" / "t.lua").touch()
    ruleset = folder.compile(text)
    row = ruleset.find_command(b"seat.take")
    allowed = {role.name: role.allowed[row] for role in ruleset.roles}
    assert allowed == {"default": 1, "a": 1, "b": 0}


LOCKS = """
keyspaces:
  seats: {key: "seats:{e}:{s}", kind: lock, ttl: {default: 9s}, hash_tag: e, lock: {PER}}
  tables: {key: "tables:{e}:{s}", kind: lock, ttl: {default: 9s}, hash_tag: e, lock: {OTHER}}
scripts:
  mine: {name: MINE, file: t.lua, keys: ["held:{owner}:{e}"], arguments: [ARGUMENTS], lock: mine}
"""
LIMIT = "per_owner: {scope: e, max: 3}"


@pytest.mark.parametrize(
    ("per", "other", "arguments", "told"),
    [
        (LIMIT, "", "owner, e", ""),
        (LIMIT, LIMIT, "owner, e", 'there is: "seats:{e}:{s}", "tables:{e}:{s}"'),
        ("", "", "owner, e", 'there is: "seats:{e}:{s}", "tables:{e}:{s}"'),
        ("authority: redis", "authority: redis", "owner, e", "there is: none"),
        ("authority: redis", "", "owner", ""),
        ("authority: redis", "", "owner, e", '"e" would limit nothing: without per_owner of'),
        (LIMIT, "", "e, user", 'mine needs the argument "owner"'),
    ],
)
def test_whose_locks_are_told(
    folder: Folder, per: str, other: str, arguments: str, told: str
) -> None:
    """What an owner holds is that of one keyspace, and who that is has to be said."""
    (folder.path / "lua").mkdir()
    (folder.path / "lua" / "t.lua").touch()
    text = LOCKS.replace("PER", per).replace("OTHER", other).replace("ARGUMENTS", arguments)
    if arguments == "owner":
        text = text.replace("{owner}:{e}", "{owner}")
    if "owner" not in arguments:
        text = text.replace("{owner}", "{user}")
    found = folder.complaints(text)
    assert len(found) == bool(told), found
    assert told in "".join(found)


@pytest.mark.parametrize(
    ("lock", "keys", "told"),
    [
        *(
            (each, "seats:{e}:{s}", f"{each} changes a lock, and would be open to who may only")
            for each in ("acquire", "extend", "release", "queue", "confirm")
        ),
        ("status", "seats:{e}:{s}", ""),
        ("mine", "seats:{e}:{owner}", ""),
    ],
)
def test_what_changes_a_lock_is_no_read(folder: Folder, lock: str, keys: str, told: str) -> None:
    """Whoever may only read could take locks by a script that says that it reads."""
    (folder.path / "lua").mkdir()
    (folder.path / "lua" / "t.lua").touch()
    arguments = "e, owner" if lock == "mine" else "e, s, owner, token, booking"
    keyspace = '"seats:{e}:{s}", kind: lock, ttl: {default: 9s}, hash_tag: e'
    rows = "lock: {table: t, key: {e: e, s: s}, per_owner: {scope: e, max: 3}}, on_loss: restore"
    found = folder.complaints(
        f"keyspaces:\n  seats: {{key: {keyspace}, {rows},\n    restore: {{sql: SELECT 1}}}}\n"
        f"scripts:\n  one: {{name: ONE, file: t.lua, keys: ['{keys}'], arguments: [{arguments}],\n"
        f"    lock: {lock}, reads: true}}\n"
    )
    assert len(found) == bool(told), found
    assert told in "".join(found)
    assert not told or found[0].startswith(f"a.yaml:6:{20 + len(lock)}: ")
