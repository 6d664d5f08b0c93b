"""Locks that are not safe, cannot work, or would not be as their keyspace says are refused."""

import pytest

from tests.policy.rulebook import Folder

LOCK = "kind: lock\nttl: {default: 600s}\n"
REDIS = LOCK + "lock: {authority: redis}\n"
READ = 'origin: {read: "SELECT 1 AS value WHERE :x = :y"}\n'


@pytest.mark.parametrize(
    ("fields", "place", "told"),
    [
        # What is not safe.
        ("kind: lock", "3:5", "a lock needs a time to live"),
        ("lock: {gate: on}", "4:11", "only keyspaces of kind lock"),
        (LOCK + "write: {mode: behind, sql: UPDATE t}", "6:19", "written by its authority"),
        (LOCK + "write: {mode: through, sql: UPDATE t}", "6:19", "can be granted twice"),
        (LOCK + "fallback: {writes: journal}", "6:24", "granted twice; allowed: origin"),
        (REDIS + "fallback: {writes: journal}", "7:24", "granted twice; allowed: origin, error"),
        # What cannot be.
        (
            LOCK + "lock: {table: t, key: {x: x, y: y, z: z}}",
            "6:43",
            '"z" is no segment of a:{x}:{y}; allowed: x, y',
        ),
        (
            LOCK + "lock: {table: t, key: {x: x}}",
            "6:27",
            "the segment y of a:{x}:{y} has no column",
        ),
        (LOCK + "lock: {table: t, key: {x: x, y: y}}", "6:19", "the statement that restores it"),
        (LOCK + "lock: {key: {x: x, y: y}}", "6:17", "of which table is not said"),
        (LOCK + "lock: {per_owner: {scope: z, max: 1}}", "6:31", "is no segment"),
        (LOCK + "lock: {per_owner: {scope: x, max: 99999999999}}", "6:39", "2147483647"),
        (
            LOCK + "lock: {queue: {heartbeat: 1s, offer: 1001ms}}",
            "6:42",
            "longer than heartbeat: who is silent for that long has lost the place",
        ),
        (LOCK + "lock: {max_hold: 60s}", "6:22", "shorter than ttl.default"),
        *(
            (LOCK + f"type: {each}", "6:11", "shown as a string; allowed: string, json")
            for each in ("hash", "list", "set", "zset", "stream", "counter")
        ),
        # What nothing acts on.
        (LOCK + READ, "6:13", "nothing acts on it; leave it out"),
        (LOCK + "drift: {rate: 5/s}", "6:12", "nothing acts on it"),
        (LOCK + "collection: {max_items: 5}", "6:17", "nothing acts on it"),
        (LOCK + "type: string\ncollection: {max_items: 5}", "7:17", "nothing acts on it"),
        (LOCK + "undelivered: push_back", "6:18", "nothing acts on it"),
        (LOCK + "freshness: {negative: 5s}", "6:27", "nothing acts on it"),
        (LOCK + "freshness: {early: on}", "6:24", "nothing acts on it"),
        (LOCK + "freshness: {lease: 3s}", "6:24", "nothing acts on it"),
        (LOCK + "fallback: {exercise: 1%}", "6:26", "nothing acts on it"),
        # What is not so.
        (LOCK + "fallback: {reads: error}", "6:23", "with Redis or without; allowed: origin"),
        (LOCK + "fallback: {writes: error}", "6:24", "with Redis or without; allowed: origin"),
        (LOCK + "on_loss: lost", "6:14", "allowed: restore"),
        (LOCK + "on_loss: refill", "6:14", "allowed: restore"),
        ("kind: lock\nttl: {default: 9s, missing: allow}", "5:33", "allowed: apply, reject"),
        ("kind: lock\nttl: {default: 9s, refresh: on_read}", "5:33", "allowed: never"),
        # What Redis alone decides.
        (LOCK + "lock: {authority: redis, max_hold: 20m}", "6:40", "nothing acts on it"),
        (LOCK + "lock: {per_owner: {scope: x, max: 1}, authority: redis}", "6:23", "nothing acts"),
        (LOCK + "lock: {queue: {heartbeat: 9s, offer: 9s}, authority: redis}", "6:19", "nothing"),
        (LOCK + "lock: {authority: redis, blind_del: never}", "6:41", "nothing acts on it"),
        (LOCK + "lock: {authority: redis, table: t}", "6:37", "nothing acts on it"),
    ],
)
def test_what_cannot_be(folder: Folder, fields: str, place: str, told: str) -> None:
    """Each mistake is told once, where it was written."""
    found = folder.keyspace(fields)
    assert len(found) == 1, found
    assert told in found[0]
    assert found[0].startswith(f"a.yaml:{place}:"), found


@pytest.mark.parametrize(
    "fields",
    [
        LOCK + "evict: never\nlock: {per_owner: {scope: x, max: 2147483647}}",
        LOCK + "lock: {table: t, key: {x: x, y: y}}\non_loss: restore\n"
        "restore: {sql: 'SELECT x, y, 1 AS value FROM t'}",
        LOCK + "fallback: {reads: origin, writes: origin, share: 9%}\non_loss: restore",
        LOCK + "type: json\nvalue: {json: on}\nlock: {owner: $.user_id}",
        "kind: lock\nttl: {default: 9s, missing: reject, refresh: never}",
        LOCK + "lock: {queue: {heartbeat: 1s, offer: 1s}}",
        REDIS + "type: hash\nfallback: {writes: error}",
    ],
)
def test_what_can_be(folder: Folder, fields: str) -> None:
    """What is safe and acted on is not complained of."""
    assert folder.keyspace(fields) == []


def test_what_is_inherited_means_others(folder: Folder) -> None:
    """Of what the defaults say nobody thought of locks."""
    lock = "keyspaces: {k: {key: 'k:{id}', kind: lock, ttl: {default: 9s}}}\n"
    shared = "collection: {max_items: 5}, fallback: {reads: error, writes: error, exercise: 1%}"
    others = "undelivered: push_back, ttl: {default: 5s, missing: allow, refresh: on_read}"
    assert folder.complaints(f"{lock}defaults: {{{shared}, {others}}}\n") == []
