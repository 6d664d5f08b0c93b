"""Every path that makes, keeps or strips a time to live, and every one that grows a collection.

Through a real proxy to real nodes; what counts is what the node says about the key afterwards.
"""

import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from proxy.embedded.node import Node
from proxy.embedded.programs import Program
from proxy.embedded.redis import Cluster, Shape
from proxy.embedded.sidecar import Sidecar, configuration_for
from tests.fakenode import key_slot
from tests.integration.rig import Caller, Mover, Word, is_error

pytestmark = pytest.mark.integration

RULES = """
keyspaces:
  plain: {key: "plain:{rest:path}", ttl: {default: 100s, min: 10s, max: 1000s}}
  tagged: {key: "tagged:{e}:{rest:path}", hash_tag: e, ttl: {default: 100s, min: 10s, max: 1000s}}
  strict: {key: "strict:{rest:path}", ttl: {missing: reject, max: 1000s}}
  free: {key: "free:{rest:path}", ttl: {default: 100s, missing: allow, max: 1000s}}
  sliding: {key: "sliding:{rest:path}", ttl: {default: 100s, refresh: on_read}}
  written: {key: "written:{rest:path}", ttl: {default: 100s, refresh: on_write}}
  shaken: {key: "shaken:{rest:path}", ttl: {default: 100s, jitter: 50%}}
  watched: {key: "watched:{rest:path}", ttl: {default: 100s, max: 1000s, mode: observe},
            collection: {max_items: 3, mode: observe}}
  counted: {key: "counted:{rest:path}", kind: rate_limit, ttl: {default: 100s}}
  best: {key: "best:{rest:path}", type: zset, collection: {max_items: 3}}
  worst: {key: "worst:{rest:path}", type: zset, collection: {max_items: 3, keep: lowest}}
  newest: {key: "newest:{rest:path}", type: list, collection: {max_items: 3}}
  oldest: {key: "oldest:{rest:path}", type: list, collection: {max_items: 3, keep: oldest}}
  events: {key: "events:{rest:path}", type: stream, collection: {max_items: 3},
           ttl: {default: 100s}}
  rough: {key: "rough:{rest:path}", type: stream, collection: {max_items: 3, exact: false}}
  members: {key: "members:{rest:path}", type: set, collection: {max_items: 3}, ttl: {default: 100s}}
  fields: {key: "fields:{rest:path}", type: hash, collection: {max_items: 3}}
  several: {key: "several:{rest:path}", transactions: split, ttl: {default: 100s}}
"""

# What a node says about a key afterwards, in milliseconds: one of these, no more and a little less.
DEFAULT, SHORTEST, LONGEST, OWN = 100_000, 10_000, 1_000_000, 50_000
ABSENT, ENDLESS = -2, -1
SLACK = 9_000


class Row(NamedTuple):
    """A command for keys @1 to @3 and what the first of them, or another, has left to live."""

    command: str
    left: int
    before: str = ""  # commands given to the node, with ; between them
    key: int = 1
    reply: Any = ...  # where it could be another than the node's own


YEAR = 32_000_000_000  # seconds, in the year 2984
SOON = "{soon}"  # 50 seconds from now, in milliseconds since 1970

ROWS = [
    # SET
    Row("SET @1 v", DEFAULT), Row("SET @1 v NX", DEFAULT), Row("SET @1 v GET", DEFAULT),
    Row("SET @1 v EX 50", OWN), Row("SET @1 v PX 50000", OWN), Row("SET @1 v PXAT {soon}", OWN),
    Row("SET @1 v EX 5", SHORTEST), Row("SET @1 v ex 5000", LONGEST),
    Row("SET @1 v PX 5", SHORTEST), Row(f"SET @1 v NX EXAT {YEAR} GET", LONGEST),
    Row(f"SET @1 v PXAT {YEAR}000", LONGEST), Row("SET @1 v XX", DEFAULT, "SET @1 a"),
    Row("SET @1 v XX", ABSENT), Row("SET @1 v NX", OWN, "SET @1 a PX 50000"),
    Row("SET @1 v KEEPTTL", OWN, "SET @1 a PX 50000"), Row("SET @1 v KEEPTTL", DEFAULT),
    Row("SET @1 v", DEFAULT, "SET @1 a PX 50000"), Row("SET @1 v EX 0", ABSENT),
    Row("SET @1 v EX x", ABSENT), Row("SET @1 v EX 10 PX 10", ABSENT), Row("SET @1 v EX", ABSENT),
    Row("SET @1 v BOGUS", ABSENT), Row("SET @1 v EX 99999999999999999999", ABSENT),
    Row("SET @1 v EX 9223372036854775807", ABSENT), Row("SET @1 v EXAT 1", ABSENT),
    # Its kin
    Row("SETEX @1 50 v", OWN), Row("SETEX @1 5000 v", LONGEST), Row("PSETEX @1 5 v", SHORTEST),
    Row("PSETEX @1 50000 v", OWN), Row("SETEX @1 0 v", ABSENT), Row("SETEX @1 x v", ABSENT),
    Row("SETNX @1 v", DEFAULT), Row("SETNX @1 v", OWN, "SET @1 a PX 50000"),
    Row("GETSET @1 v", DEFAULT), Row("GETSET @1 v", DEFAULT, "SET @1 a PX 50000"),
    Row("MSET @1 v @2 w", DEFAULT), Row("MSET @1 v @2 w", DEFAULT, key=2),
    Row("MSETNX @1 v @2 w", DEFAULT, key=2), Row("MSETEX 2 @1 v @2 w", DEFAULT, key=2),
    Row("MSETEX 2 @1 v @2 w EX 5000", LONGEST, key=2), Row("MSETEX 1 @1 v KEEPTTL", DEFAULT),
    Row("GETEX @1", OWN, "SET @1 a PX 50000"), Row("GETEX @1 PERSIST", DEFAULT, "SET @1 a PX 500"),
    Row("GETEX @1 EX 5000", LONGEST, "SET @1 a"), Row("GETEX @1 PX 1", SHORTEST, "SET @1 a"),
    Row("GETEX @1 PXAT {soon}", OWN, "SET @1 a"),
    Row("APPEND @1 v", DEFAULT), Row("APPEND @1 v", OWN, "SET @1 a PX 50000"),
    Row("SETRANGE @1 3 v", DEFAULT), Row("SETBIT @1 3 1", DEFAULT), Row("INCR @1", DEFAULT),
    Row("INCRBY @1 3", DEFAULT), Row("INCRBYFLOAT @1 3.5", DEFAULT), Row("DECR @1", DEFAULT),
    Row("DECRBY @1 3", OWN, "SET @1 1 PX 50000"), Row("BITFIELD @1 SET u8 0 3", DEFAULT),
    Row("BITOP OR @1 @2 @3", DEFAULT, "SET @2 a"), Row("PFADD @1 v", DEFAULT),
    Row("PFMERGE @1 @2", DEFAULT, "PFADD @2 a"),
    # Times
    Row("EXPIRE @1 50", OWN, "SET @1 a"), Row("EXPIRE @1 5000", LONGEST, "SET @1 a"),
    Row("PEXPIRE @1 1", SHORTEST, "SET @1 a"), Row(f"EXPIREAT @1 {YEAR}", LONGEST, "SET @1 a"),
    Row("PEXPIREAT @1 {soon}", OWN, "SET @1 a"), Row("EXPIRE @1 0", ABSENT, "SET @1 a"),
    Row("EXPIRE @1 -1", ABSENT, "SET @1 a"), Row("EXPIREAT @1 1", ABSENT, "SET @1 a"),
    Row("EXPIRE @1 5000 NX", OWN, "SET @1 a PX 50000"),
    Row("EXPIRE @1 5000 GT", LONGEST, "SET @1 a PX 50000"), Row("EXPIRE @1 50", ABSENT),
    Row("PEXPIRE @1 x", ENDLESS, "SET @1 a"), Row("EXPIRE @1 50 BOGUS", ENDLESS, "SET @1 a"),
    Row("EXPIRE @1 9223372036854775807", ENDLESS, "SET @1 a"),
    Row("PEXPIRE @1 9223372036854775807", ENDLESS, "SET @1 a"),
    Row("PERSIST @1", DEFAULT, "SET @1 a PX 50000", reply=1), Row("PERSIST @1", ABSENT, reply=0),
    # Copies
    Row("RENAME @2 @1", LONGEST, "SET @2 a PX 5000000"),
    Row("COPY @2 @1", LONGEST, "SET @2 a PX 5000000"),
    Row("RENAME @2 @1", OWN, "SET @2 a PX 50000"), Row("RENAME @2 @1", DEFAULT, "SET @2 a"),
    Row("RENAMENX @2 @1", DEFAULT, "SET @2 a"), Row("COPY @2 @1", DEFAULT, "SET @2 a"),
    Row("COPY @2 @1 REPLACE", OWN, "SET @2 a PX 50000;SET @1 b"),
    Row("SORT @2 STORE @1", DEFAULT, "RPUSH @2 1 2;SET @1 b PX 50000"),
    # Collections
    Row("HSET @1 f v", DEFAULT), Row("HSET @1 f v", OWN, "HSET @1 g w;PEXPIRE @1 50000"),
    Row("HMSET @1 f v", DEFAULT), Row("HSETNX @1 f v", DEFAULT), Row("HINCRBY @1 f 1", DEFAULT),
    Row("HINCRBYFLOAT @1 f 1.5", DEFAULT), Row("HSETEX @1 EX 50 FIELDS 1 f v", DEFAULT),
    Row("HGETEX @1 EX 50 FIELDS 1 f", ENDLESS, "HSET @1 f v"),
    Row("LPUSH @1 v", DEFAULT), Row("RPUSH @1 v", DEFAULT), Row("LPUSHX @1 v", ABSENT),
    Row("LMOVE @2 @1 LEFT RIGHT", DEFAULT, "RPUSH @2 a b"),
    Row("RPOPLPUSH @2 @1", DEFAULT, "RPUSH @2 a b"), Row("SADD @1 v", DEFAULT),
    Row("BLMOVE @2 @1 LEFT RIGHT 1", DEFAULT, "RPUSH @2 a b"),
    Row("BRPOPLPUSH @2 @1 1", DEFAULT, "RPUSH @2 a b"),
    Row("SMOVE @2 @1 a", DEFAULT, "SADD @2 a b"), Row("SINTERSTORE @1 @2", DEFAULT, "SADD @2 a"),
    Row("SUNIONSTORE @1 @2", DEFAULT, "SADD @2 a;SET @1 b PX 50000"),
    Row("SDIFFSTORE @1 @2 @3", DEFAULT, "SADD @2 a"), Row("ZADD @1 1 a", DEFAULT),
    Row("ZADD @1 XX 1 a", ABSENT), Row("ZINCRBY @1 1 a", DEFAULT),
    Row("ZINTERSTORE @1 1 @2", DEFAULT, "ZADD @2 1 a"),
    Row("ZUNIONSTORE @1 1 @2", DEFAULT, "ZADD @2 1 a"),
    Row("ZDIFFSTORE @1 1 @2", DEFAULT, "ZADD @2 1 a"),
    Row("ZRANGESTORE @1 @2 0 -1", DEFAULT, "ZADD @2 1 a"), Row("GEOADD @1 1 1 a", DEFAULT),
    Row("GEORADIUS @2 1 1 9 km STORE @1", DEFAULT, "GEOADD @2 1 1 a"),
    Row("GEORADIUSBYMEMBER @2 a 9 km STOREDIST @1", DEFAULT, "GEOADD @2 1 1 a"),
    Row("GEOSEARCHSTORE @1 @2 FROMMEMBER a BYRADIUS 9 km", DEFAULT, "GEOADD @2 1 1 a"),
    Row("XADD @1 1-1 f v", DEFAULT), Row("XGROUP CREATE @1 g $ MKSTREAM", DEFAULT),
    # What nobody sees
    Row("EVAL return{1} 2 @2 @1", DEFAULT, "SET @1 a"),
    Row("EVAL return{1} 1 @1", OWN, "SET @1 a PX 50000"), Row("EVAL_RO return{1} 1 @1", ABSENT),
    # What is no matter of ours
    Row("GET @1", ENDLESS, "SET @1 a"), Row("DEL @1", ABSENT, "SET @1 a"),
    Row("TTL @1", ENDLESS, "SET @1 a"), Row("LPOP @1", ENDLESS, "RPUSH @1 a b"),
    # Another type: the client hears of it once, and of what follows never.
    Row("LPUSH @1 v", DEFAULT, "SET @1 a"), Row("INCR @1", OWN, "SET @1 a PX 50000"),
]  # fmt: skip


class Ground:
    """A proxy with rules and a connection to every node behind it."""

    def __init__(self, sidecar: Sidecar, mover: Mover, owners: list[Node]) -> None:
        self.sidecar = sidecar
        self.mover = mover
        self.owners = owners
        self.number = 0

    def link(self, key: bytes) -> Caller:
        """Return the connection to the node that has a key."""
        return self.mover.links[self.owners[key_slot(key)].id]

    def names(self, space: str) -> tuple[list[bytes], list[bytes]]:
        """Return three fresh keys of one slot, as clients and as nodes know them."""
        self.number += 1
        tag = f"e{self.number}"
        client = tag if space == "tagged" else f"{{{tag}}}"
        return ([f"{space}:{client}:{i}".encode() for i in range(1, 4)],
                [f"{space}:{{{tag}}}:{i}".encode() for i in range(1, 4)])  # fmt: skip

    async def prepare(self, row: Row, nodes: list[bytes]) -> bool:
        """Give the node what a row needs; return whether it knows the commands."""
        link = self.link(nodes[0])
        for text in filter(None, row.before.split(";")):
            await link.call(*spelled(text, nodes))
        known = await link.call("COMMAND", "INFO", row.command.split()[0])
        return known not in ([None], [[]])

    async def left(self, key: bytes) -> int:
        return int(await self.link(key).call("PTTL", key))

    async def total(self, metric: str, **labels: str) -> float:
        _, page = await self.sidecar.get("/metrics")
        lines = (line for line in page.splitlines() if line.startswith(metric))
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(
            float(line.split()[-1]) for line in lines if all(text in line for text in wanted)
        )


def spelled(text: str, keys: list[bytes]) -> list[Word]:
    soon = str(int(time.time() * 1000) + OWN)
    return [keys[int(word[1:]) - 1] if word[0] == "@" else word.replace("{soon}", soon)
            for word in text.split()]  # fmt: skip


def about(left: int, expected: int) -> bool:
    return left == expected if expected < 0 else expected - SLACK < left <= expected


@pytest.fixture(scope="module", params=["valkey", pytest.param("debian", marks=pytest.mark.debian)])
async def ground(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ground]:
    """One proxy for all tests of this module, in front of nodes of either age."""
    folder = tmp_path_factory.mktemp("lifetimes")
    (folder / "rules.yaml").write_text(RULES)
    program: Program = request.getfixturevalue(
        "redis_binary" if request.param == "valkey" else "debian_redis"
    )
    async with Cluster("cache", program, folder / "cache", shape=Shape(3, 0)) as cluster:
        blocks = configuration_for({"cache": cluster}, policies=str(folder / "rules.yaml"))
        async with Sidecar(blocks, folder / "proxy") as sidecar:
            mover = Mover(cluster)
            await mover.open()
            # The connections live as long as the module; those of a test end with it.
            Caller.opened.difference_update(mover.links.values())
            yield Ground(sidecar, mover, await mover.owners())
            mover.close()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("space", ["plain", "tagged"])
async def test_every_path_ends_with_a_time(ground: Ground, space: str, protocol: int) -> None:
    """Each command leaves the key with the time of the rules, alone and in a transaction.

    What the client hears is what the node says to the same command without the rules.
    """
    caller = await Caller.open(ground.sidecar.port)
    await caller.call("HELLO", protocol)
    wrong, tried = [], 0
    for row in ROWS:
        for queued in (False, True):
            clients, nodes = ground.names(space)
            _, bare = ground.names("bare")
            if not await ground.prepare(row, nodes):
                continue
            tried += 1
            await ground.prepare(row, bare)
            link = ground.link(bare[0])
            await link.call("HELLO", protocol)
            expected = await link.call(*spelled(row.command, bare))
            words = spelled(row.command, clients)
            if queued:
                *told, reply = await caller.pipeline([["MULTI"], words, ["EXEC"]])
                reply = reply[0] if isinstance(reply, list) and len(reply) == 1 else (told, reply)
            else:
                reply = (await caller.pipeline([words, ["EXISTS", clients[0]]]))[0]
            if row.reply is not ...:
                expected = row.reply
            left = await ground.left(nodes[row.key - 1])
            same = str(reply) == str(expected)
            if not (same and about(left, row.left)):
                wrong.append((row, queued, reply, expected, left))
    assert not wrong, "\n".join(map(str, wrong))
    # The oldest nodes lack some commands of them: MSETEX and those of fields.
    assert tried >= 2 * (len(ROWS) - 5)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_fields_have_the_same_bounds(ground: Ground, protocol: int) -> None:
    """The time of a field is moved to the bounds of its keyspace; one without stays without."""
    caller = await Caller.open(ground.sidecar.port)
    await caller.call("HELLO", protocol)
    _, probe = ground.names("bare")
    if is_error(await ground.link(probe[0]).call("HTTL", probe[0], "FIELDS", 1, "f")):
        pytest.skip("this server has no times of fields")
    rows = [("HEXPIRE @1 5000 FIELDS 1 f", LONGEST), ("HPEXPIRE @1 1 FIELDS 1 f", SHORTEST),
            (f"HEXPIREAT @1 {YEAR} FIELDS 1 f", LONGEST), ("HPEXPIREAT @1 {soon} FIELDS 1 f", OWN),
            ("HEXPIRE @1 50 NX FIELDS 1 f", OWN), ("HGETEX @1 EX 5000 FIELDS 1 f", LONGEST),
            ("HSETEX @1 PX 1 FIELDS 1 f v", SHORTEST), ("HGETEX @1 PERSIST FIELDS 1 f", ENDLESS),
            ("HSETEX @1 FIELDS 1 f v EX 5000", LONGEST), ("HSETEX @1 FIELDS 1 f v", ENDLESS)
    ]  # fmt: skip
    for command, left in rows:
        keys, nodes = ground.names("tagged")
        link = ground.link(nodes[0])
        await link.call("HSET", nodes[0], "f", "v")
        if is_error(await caller.call(*spelled(command, keys))):
            assert command == "HSETEX @1 FIELDS 1 f v EX 5000"
            continue
        found = (await link.call("HPTTL", nodes[0], "FIELDS", 1, "f"))[0]
        assert about(found, left), (command, found)


ORDERS = [
    # What would make a key without a time, and what would not.
    ("SET @1 v", False), ("SET @1 v EX 50", True), ("SET @1 v NX PX 50000", True),
    ("SET @1 v KEEPTTL", False), ("SET @1 v XX KEEPTTL", True), ("SETEX @1 50 v", True),
    ("SETNX @1 v", False), ("GETSET @1 v", False), ("MSET @1 v @2 w", False), ("INCR @1", False),
    ("PERSIST @1", False), ("GETEX @1 PERSIST", False), ("GETEX @1", True), ("GET @1", True),
    ("RENAME @2 @1", True), ("RENAME other @1", False), ("COPY @2 @1", True),
    ("COPY {other}1 @1", False), ("SORT @2 STORE @1", False), ("BLMOVE @2 @1 LEFT LEFT 1", False),
    ("BITOP OR @1 @2", False), ("EVAL return{1} 1 @1", True), ("EXPIRE @1 50", True),
    ("RESTORE @1 0 x", False), ("RESTORE @1 50000 x", True), ("DEL @1", True),
]  # fmt: skip


async def test_what_would_have_no_time_is_refused(ground: Ground) -> None:
    """Under `missing: reject` a command that says no time is refused before a byte leaves."""
    caller = await Caller.open(ground.sidecar.port)
    for command, passes in ORDERS:
        (keys, nodes) = ground.names("strict")
        tag = keys[0].partition(b"}")[0].partition(b"{")[2].decode()
        text = command.replace("other", f"other:{{{tag}}}").replace("{other:{", "other:{")
        text = text.replace("}}1", "}1")
        for queued in (False, True):
            if queued:
                assert await caller.call("MULTI") == b"OK"
            reply = await caller.call(*spelled(text, keys))
            refused = is_error(reply) and str(reply).startswith("POLICY keyspace 'strict'")
            assert refused is not passes, (text, reply)
            if queued:
                reply = await caller.call("EXEC")
                aborted = is_error(reply) and str(reply).startswith("EXECABORT")
                assert aborted is not passes, (text, reply)
        assert passes or await ground.left(nodes[0]) == ABSENT
    longest = spelled("SET @1 v EX 5000", keys)
    assert await caller.call(*longest) == b"OK"
    assert about(await ground.left(nodes[0]), LONGEST)


async def test_keys_may_live_for_ever(ground: Ground) -> None:
    """Under `missing: allow` nothing gets the default, but a time that is said has its bound."""
    caller = await Caller.open(ground.sidecar.port)
    rows = [("SET @1 v", ENDLESS), ("SET @1 v EX 5000", LONGEST), ("PERSIST @1", ENDLESS),
            ("HSET @2 f v", ENDLESS), ("GETEX @1 EX 5000", LONGEST), ("GETEX @1 PERSIST", ENDLESS),
            ("SET @1 v KEEPTTL", ENDLESS)]  # fmt: skip
    keys, nodes = ground.names("free")
    for command, left in rows:
        assert not is_error(await caller.call(*spelled(command, keys)))
        assert about(await ground.left(nodes["@2" in command]), left), command
    for options, left in ((), ENDLESS), (("PX", 5_000_000), LONGEST):
        for command in ("COPY @3 @1 REPLACE", "RENAME @3 @1"):
            await ground.link(nodes[0]).call("SET", nodes[2], "v", *options)
            assert not is_error(await caller.call(*spelled(command, keys)))
            assert about(await ground.left(nodes[0]), left), command


async def restarts(ground: Ground, space: str, before: str, command: str) -> bool:
    """Return whether a command starts the time of a key anew that had half of it left."""
    caller = await Caller.open(ground.sidecar.port)
    keys, nodes = ground.names(space)
    for text in (before, "PEXPIRE @1 50000"):
        await ground.link(nodes[0]).call(*spelled(text, nodes))
    assert not is_error(await caller.call(*spelled(command, keys)))
    left = await ground.left(nodes[0])
    assert about(left, DEFAULT) or about(left, OWN) or left == ABSENT
    caller.close()
    return about(left, DEFAULT)


async def test_use_starts_the_time_anew(ground: Ground) -> None:
    """Reads and writes of data slide a time to live, as far as the rules say; questions do not."""
    reads = [("HSET @1 f v", "HGETALL @1"), ("SET @1 v", "MGET @1 @2"), ("SET @1 v", "GETEX @1")]
    writes = [
        ("HSET @1 f v", "HSET @1 f w"),
        ("HSET @1 f v h w", "HDEL @1 f"),
        ("SET @1 v", "SET @1 w"),
    ]
    neither = [("SET @1 v", "TTL @1"), ("SET @1 v", "EXISTS @1"), ("SET @1 v", "TYPE @1"),
               ("SET @1 v", "OBJECT ENCODING @1"), ("SET @1 v", "SET @1 w EX 50"),
               ("SET @1 v", "EXPIRE @1 50"), ("SET @1 v", "DEL @1"),
               ("SET @1 v", "DUMP @1")]  # fmt: skip
    for before, command in reads:
        assert await restarts(ground, "sliding", before, command), command
        assert not await restarts(ground, "written", before, command), command
    for before, command in writes:
        assert await restarts(ground, "sliding", before, command), command
        assert await restarts(ground, "written", before, command), command
    for before, command in neither:
        assert not await restarts(ground, "sliding", before, command), command


async def test_a_slide_does_not_break_its_own_watch(ground: Ground) -> None:
    """What a client reads between WATCH and MULTI keeps its time, or EXEC would never run."""
    caller = await Caller.open(ground.sidecar.port)
    keys, nodes = ground.names("sliding")
    await ground.link(nodes[0]).call("HSET", nodes[0], "f", "v")
    replies = await caller.pipeline([
        ["HGETALL", keys[0]], ["WATCH", keys[0]], ["HGETALL", keys[0]], ["MULTI"],
        ["HSET", keys[0], "f", "w"], ["HGET", keys[0], "f"], ["EXEC"],
    ])  # fmt: skip
    assert replies[-1] == [0, b"w"]
    assert about(await ground.left(nodes[0]), DEFAULT)


async def test_keys_that_are_made_together_do_not_end_together(ground: Ground) -> None:
    """Jitter takes a part of the default off, another one for each key, wherever it is given."""
    caller = await Caller.open(ground.sidecar.port)
    for command in ("SET @1 v", "HSET @1 f v"):
        left = set()
        for _ in range(40):
            keys, nodes = ground.names("shaken")
            await caller.call(*spelled(command, keys))
            left.add(await ground.left(nodes[0]) // 1000)
        assert len(left) > 10
        assert min(left) >= 49 - SLACK // 1000
        assert max(left) <= 100


async def test_a_rule_on_trial_changes_nothing(ground: Ground) -> None:
    """Under `observe` keys live and grow as they are sent; each breach is counted."""
    caller = await Caller.open(ground.sidecar.port)
    keys, nodes = ground.names("watched")
    before = await ground.total("sidecache_policy_breaches_total", keyspace="watched")
    for command, left in [("SET @1 v", ENDLESS), ("SETEX @1 5000 v", 5_000_000),
                          ("RPUSH @2 a b c d e", ENDLESS)]:  # fmt: skip
        await caller.call(*spelled(command, keys))
        assert about(await ground.left(nodes["@2" in command]), left)
    assert await caller.call("LLEN", keys[1]) == 5
    # The list breaks both rules.
    assert await ground.total("sidecache_policy_breaches_total", keyspace="watched") == before + 4
    assert await ground.total("sidecache_policy_amended_total", keyspace="watched") == 0


async def test_the_first_count_of_a_window_gets_its_end(ground: Ground) -> None:
    """A counter that is only ever increased ends with the window of its keyspace."""
    caller = await Caller.open(ground.sidecar.port)
    keys, nodes = ground.names("counted")
    assert await caller.call("INCR", keys[0]) == 1
    assert about(await ground.left(nodes[0]), DEFAULT)
    await ground.link(nodes[0]).call("PEXPIRE", nodes[0], OWN)
    assert await caller.pipeline([["INCR", keys[0]], ["EXPIRE", keys[0], 20]]) == [2, 1]
    assert await ground.left(nodes[0]) <= 20_000


# Commands after which a collection has no more than three, and what it has, if that is certain.
GROWN = [
    ("best", "ZADD @1 1 a 2 b 3 c 4 d 5 e", "ZRANGE @1 0 -1", b"cde"),
    ("best", "ZADD @1 1 a 2 b 3 c;ZINCRBY @1 9 z", "ZRANGE @1 0 -1", b"bcz"),
    ("best", "ZADD @1 1 a 2 b 3 c;ZUNIONSTORE @2 1 @1;ZADD @2 9 d", "ZRANGE @2 0 -1", b"bcd"),
    ("worst", "ZADD @1 1 a 2 b 3 c 4 d 5 e", "ZRANGE @1 0 -1", b"abc"),
    ("worst", "GEOADD @1 1 1 a 2 2 b 3 3 c 4 4 d", "ZCARD @1", 3),
    ("newest", "RPUSH @1 a b c d e", "LRANGE @1 0 -1", b"cde"),
    ("newest", "LPUSH @1 a b c d e", "LRANGE @1 0 -1", b"edc"),
    ("newest", "RPUSH @1 a b c;LPUSHX @1 d", "LRANGE @1 0 -1", b"dab"),
    ("newest", "RPUSH @1 a b c;RPUSHX @1 d", "LRANGE @1 0 -1", b"bcd"),
    ("newest", "RPUSH @1 a b c;LINSERT @1 BEFORE c x", "LRANGE @1 0 -1", b"bxc"),
    ("newest", "RPUSH @1 a b c;RPUSH @2 x;LMOVE @2 @1 LEFT LEFT", "LRANGE @1 0 -1", b"xab"),
    ("newest", "RPUSH @1 a b c;RPUSH @2 x;LMOVE @2 @1 LEFT RIGHT", "LRANGE @1 0 -1", b"bcx"),
    ("newest", "RPUSH @1 a b c;RPUSH @2 x;BLMOVE @2 @1 LEFT LEFT 1", "LRANGE @1 0 -1", b"xab"),
    ("newest", "RPUSH @1 a b c;RPUSH @2 x;BRPOPLPUSH @2 @1 1", "LRANGE @1 0 -1", b"xab"),
    ("oldest", "RPUSH @1 a b c d e", "LRANGE @1 0 -1", b"abc"),
    ("oldest", "LPUSH @1 a b c d e", "LRANGE @1 0 -1", b"cba"),
    ("events", "XADD @1 1 f v;XADD @1 2 f v;XADD @1 3 f v;XADD @1 4 f v", "XLEN @1", 3),
    ("events", "XADD @1 MAXLEN 2 1 f v;XADD @1 2 f v;XADD @1 MAXLEN 2 3 f v", "XLEN @1", 2),
    ("events", "XADD @1 1 f v;XADD @1 2 f v;XADD @1 3 f v;XADD @1 MAXLEN = 9 4 f v", "XLEN @1", 3),
    ("events", "XADD @1 1 f v;XADD @1 2 f v;XADD @1 3 f v;XADD @1 MAXLEN ~ 9 4 f v", "XLEN @1", 3),
    ("events", "XADD @1 1 f v;XADD @1 2 f v;XADD @1 3 f v;XADD @1 MINID 1 4 f v", "XLEN @1", 3),
    ("events", "XADD @1 1 f v;XADD @1 2 f v;XADD @1 3 f v;XADD @1 NOMKSTREAM 4 f v", "XLEN @1", 3),
    ("members", "SADD @1 a b c d e", "SCARD @1", 3),
    ("members", "SADD @1 a b c;SADD @2 d;SMOVE @2 @1 d", "SCARD @1", 3),
    ("members", "SADD @1 a b c;SADD @2 d e f;SUNIONSTORE @3 @1 @2", "SCARD @3", 3),
    ("fields", "HSET @1 a 1 b 2 c 3 d 4", "HLEN @1", 3),
    ("fields", "HSET @1 a 1 b 2 c 3;HINCRBY @1 d 1", "HLEN @1", 3),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_collection_holds_no_more_than_it_may(ground: Ground, protocol: int) -> None:
    """Every command that adds is followed by a trim, alone, in a pipeline and in a transaction."""
    caller = await Caller.open(ground.sidecar.port)
    await caller.call("HELLO", protocol)
    for space, commands, question, expected in GROWN:
        for queued in (False, True):
            keys, nodes = ground.names(space)
            words = [spelled(text, keys) for text in commands.split(";")]
            if queued:
                words = [["MULTI"], *words, ["EXEC"]]
            replies = await caller.pipeline(words)
            assert not any(map(is_error, replies)), (commands, replies)
            assert not queued or len(replies[-1]) == len(words) - 2
            # What follows a command that waited is on the client's own way, not on its.
            await caller.call(*spelled(question, keys))
            found = await ground.link(nodes[0]).call(*spelled(question, nodes))
            held = b"".join(found) if isinstance(found, list) else found
            assert held == expected, (space, commands, queued, found)


# A key of five, where nobody counts, and what comes of it in a keyspace that holds three.
CARRIED = [
    ("best", "ZADD @1 1 a 2 b 3 c 4 d 5 e", "ZRANGE @1 0 -1", b"cde"),
    ("worst", "ZADD @1 1 a 2 b 3 c 4 d 5 e", "ZRANGE @1 0 -1", b"abc"),
    ("newest", "RPUSH @1 a b c d e", "LRANGE @1 0 -1", b"abc"),
    ("oldest", "RPUSH @1 a b c d e", "LRANGE @1 0 -1", b"cde"),
    ("events", "XADD @1 1 a v;XADD @1 2 a v;XADD @1 3 a v;XADD @1 4 a v", "XLEN @1", 3),
    ("members", "SADD @1 a b c d e", "SCARD @1", 3),
    ("fields", "HSET @1 a 1 b 2 c 3 d 4 e 5", "HLEN @1", 3),
]


@pytest.mark.parametrize("command", ["RENAME", "COPY", "RESTORE"])
async def test_what_comes_as_a_whole_is_cut(ground: Ground, command: str) -> None:
    """A collection that is renamed, copied or restored into a keyspace keeps its limit there."""
    caller = await Caller.open(ground.sidecar.port)
    for space, made, question, expected in CARRIED:
        for queued in (False, True):
            keys, nodes = ground.names(space)
            _, bare = ground.names("bare")
            source = bare[0].replace(bare[0].split(b":")[1], nodes[0].split(b":")[1])
            link = ground.link(source)
            for text in made.split(";"):
                await link.call(*spelled(text, [source]))
            words: list[Word] = [command, source, keys[0]]
            if command == "RESTORE":
                words = [command, keys[0], 0, await link.call("DUMP", source)]
            pipeline = [["MULTI"], words, ["EXEC"]] if queued else [words]
            assert not any(map(is_error, await caller.pipeline(pipeline)))
            await caller.call(*spelled(question, keys))
            found = await link.call(*spelled(question, nodes))
            held = b"".join(found) if isinstance(found, list) else found
            assert held == expected, (space, queued, found)


async def test_no_collection_becomes_one_of_another_type(ground: Ground) -> None:
    """SORT may store no list where sorted sets are, nor may a list be renamed or copied there."""
    caller = await Caller.open(ground.sidecar.port)
    lists, _ = ground.names("newest")
    target = lists[0].replace(b"newest", b"best")
    await caller.call("RPUSH", lists[0], 1, 2)
    for words in (["SORT", lists[0], "STORE", target], ["COPY", lists[0], target],
                  ["RENAME", lists[0], target], ["RENAMENX", lists[0], target]):  # fmt: skip
        for queued in (False, True):
            pipeline = [["MULTI"], words, ["EXEC"]] if queued else [words]
            replies = await caller.pipeline(pipeline)
            assert str(replies[queued]).startswith("WRONGTYPE"), (words, replies)
    assert await ground.link(target).call("EXISTS", target) == 0
    assert await caller.call("SORT", lists[0], "STORE", lists[1]) == 2


async def test_a_stream_may_be_trimmed_roughly(ground: Ground) -> None:
    """With `exact: false` a node drops whole parts of a stream, so it stays near its limit."""
    caller = await Caller.open(ground.sidecar.port)
    keys, nodes = ground.names("rough")
    await caller.pipeline([["XADD", keys[0], f"{n}-1", "f", "v"] for n in range(1, 500)])
    assert 3 <= await ground.link(nodes[0]).call("XLEN", nodes[0]) <= 200


async def test_a_large_hash_or_set_is_cut_in_one_write(ground: Ground) -> None:
    """What has thousands too many is brought down at once."""
    caller = await Caller.open(ground.sidecar.port)
    for space, command, count in (("members", "SADD", "SCARD"), ("fields", "HSET", "HLEN")):
        keys, nodes = ground.names(space)
        await caller.call(command, keys[0], *map(str, range(20_000)))
        assert await ground.link(nodes[0]).call(count, nodes[0]) == 3


async def test_commands_over_slots_have_their_times_too(ground: Ground) -> None:
    """MSET and MGET that are divided, and transactions over slots, give every key its time."""
    caller = await Caller.open(ground.sidecar.port)
    keys = [f"several:{number}".encode() for number in range(30)]
    pairs = [word for key in keys for word in (key, b"v")]
    assert await caller.call("MSET", *pairs) == b"OK"
    for key in keys:
        assert about(await ground.left(key), DEFAULT)
    assert await caller.call("DEL", *keys) == 30
    assert await caller.pipeline([["MULTI"], ["MSET", *pairs], ["HSET", "several:h", "f", "v"],
                                  ["MGET", *keys], ["EXEC"]]) == [
        b"OK", b"QUEUED", b"QUEUED", b"QUEUED", [b"OK", 1, [b"v"] * 30]]  # fmt: skip
    for key in (*keys, b"several:h"):
        assert about(await ground.left(key), DEFAULT)
    slid = [f"sliding:{number}".encode() for number in range(30)]
    for key in slid:
        await ground.link(key).call("SET", key, "v", "PX", OWN)
    assert await caller.call("MGET", *slid) == [b"v"] * 30
    for key in slid:
        assert about(await ground.left(key), DEFAULT)


async def test_many_keys_of_one_slot_are_one_errand(ground: Ground) -> None:
    """A command with hundreds of keys is followed by one command and not by hundreds."""
    caller = await Caller.open(ground.sidecar.port)
    keys = [f"plain:{{many}}:{number}".encode() for number in range(300)]
    before = await ground.total("sidecache_policy_amended_total", how="followed", outcome="ok")
    assert await caller.call("MSET", *[word for key in keys for word in (key, b"v")]) == b"OK"
    for key in keys:
        assert about(await ground.left(key), DEFAULT)
    after = await ground.total("sidecache_policy_amended_total", how="followed", outcome="ok")
    assert after == before + 1


async def test_what_follows_and_fails_is_counted(ground: Ground) -> None:
    """An error of a command of ours reaches nobody and stands in the metrics."""
    caller = await Caller.open(ground.sidecar.port)
    keys, nodes = ground.names("newest")
    await ground.link(nodes[0]).call("SET", nodes[0], "v")
    before = await ground.total(
        "sidecache_policy_amended_total", keyspace="newest", outcome="error"
    )
    replies = await caller.pipeline([["RPUSH", keys[0], "a"], ["ECHO", "x"]])
    assert is_error(replies[0])
    assert str(replies[0]).startswith("WRONGTYPE")
    assert replies[1] == b"x"
    after = await ground.total("sidecache_policy_amended_total", keyspace="newest", outcome="error")
    assert after == before + 1


async def test_a_forgotten_script_leaves_its_keys_with_a_time(ground: Ground) -> None:
    """A script that a node does not know is brought there, and what it makes gets the default."""
    caller = await Caller.open(ground.sidecar.port)
    keys, nodes = ground.names("plain")
    sha = await caller.call("SCRIPT", "LOAD", "redis.call('SET', KEYS[1], 'v') return 'made'")
    for link in ground.mover.links.values():
        await link.call("SCRIPT", "FLUSH")
    assert await caller.call("EVALSHA", sha, 1, keys[0]) == b"made"
    assert await caller.call("GET", keys[0]) == b"v"
    assert about(await ground.left(nodes[0]), DEFAULT)


async def test_times_survive_a_move_of_their_slot(ground: Ground) -> None:
    """While a slot moves, what follows a command goes where the command went: ASK and MOVED."""
    caller = await Caller.open(ground.sidecar.port)
    keys, nodes = ground.names("plain")
    slot, mover = key_slot(nodes[0]), ground.mover
    source = ground.owners[slot]
    target = next(node for node in ground.owners if node is not source)
    await mover.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    await mover.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    assert await caller.pipeline([["HSET", keys[0], "f", "v"], ["HGET", keys[0], "f"],
                                  ["SADD", keys[1], "a"]]) == [1, b"v", 1]  # fmt: skip
    for node in (target, source, *mover.cluster.primaries):
        await mover.ask(node, "CLUSTER", "SETSLOT", slot, "NODE", target.id)
    assert await caller.pipeline([["HSET", keys[2], "f", "v"], ["HGET", keys[2], "f"]]) == [1, b"v"]
    ground.owners[slot] = target
    for node in nodes:
        assert about(await ground.left(node), DEFAULT)
