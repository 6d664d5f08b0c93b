"""What commands do with their keys, and the key specifications that Redis publishes about it.

COMMAND shows a specification per group of keys: where it begins, how it goes on, and flags that
say what becomes of the keys. Client libraries route by them, ACL tools judge by them. Routing here
follows the command table alone; the flags are for those who ask.

Always true: what this module has no line for is a plain read, or a write that updates its key.
"""

from collections.abc import Iterator, Mapping, Sequence

from proxy.commands import Row
from proxy.resp import Simple
from proxy.wire.rules import KeyKind

Flags = tuple[str, ...]

# Redis' words: RO reads, RW reads and writes, OW overwrites, RM removes, whatever the value is;
# access: the value is told to the client, or copied; update, insert, delete: what becomes of it.
_FIRST = """
RO                     exists hexists hlen hstrlen llen memory|usage object|encoding object|freq
RO                     object|idletime object|refcount scard sismember strlen touch type watch xlen
RO                     zcard
RO access              copy georadius georadiusbymember sort xreadgroup
RW access              pfcount pfdebug
RW access update       decr decrby eval evalsha fcall getex getset hgetex hincrby hincrbyfloat incr
RW access update       incrby incrbyfloat move setbit zincrby
RW access delete       blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin getdel hgetdel
RW access delete       lmove lmpop lpop migrate rename renamenx rpop rpoplpush smove spop zmpop
RW access delete       zpopmax zpopmin
RW access insert       pfmerge
RW delete              hdel lrem ltrim srem xautoclaim xdel xgroup|delconsumer xgroup|destroy xtrim
RW delete              zrem zremrangebylex zremrangebyrank zremrangebyscore
RW insert              append hsetex hsetnx linsert lpush lpushx pfadd rpush rpushx sadd
RW insert              xgroup|create xgroup|createconsumer
OW update              bitop geosearchstore mset msetex psetex restore restore-asking sdiffstore
OW update              setex sunionstore zdiffstore zinterstore zrangestore zunionstore
OW insert              msetnx setnx
RM delete              del delifeq unlink
RW access update variable_flags   bitfield set
not_key                clusterscan spublish ssubscribe sunsubscribe
"""

# The keys behind the first one, where something else becomes of them.
_OTHERS = """
RO access              bitop geosearchstore pfmerge sdiffstore sinterstore sunionstore zdiffstore
RO access              zinterstore zrangestore zunionstore
RW insert              blmove brpoplpush lmove rpoplpush smove
OW update              copy georadius georadiusbymember rename sort
OW insert              renamenx
"""

# Words of BITFIELD that make it a write.
_BITFIELD_WRITES = (b"SET", b"INCRBY")


def _parse(table: str) -> Mapping[bytes, Flags]:
    found: dict[bytes, Flags] = {}
    for line in table.strip().splitlines():
        flags, _, names = line.partition("  ")
        found |= dict.fromkeys(names.encode().split(), tuple(flags.split()))
    return found


_FIRST_FLAGS = _parse(_FIRST)
_OTHER_FLAGS = _parse(_OTHERS)


def flags_of(row: Row, words: Sequence[bytes], index: int) -> Flags:
    """Return what a command with these words does with its key of this number."""
    flags = _flags(row, index > 0)
    if "variable_flags" not in flags:
        return flags
    said = [word.upper() for word in words]
    if row.name == b"set":
        return ("RW", "access", "update") if b"GET" in said[3:] else ("OW", "update")
    writes = any(word in said[2:] for word in _BITFIELD_WRITES)
    return ("RW", "access", "update") if writes else ("RO", "access")


def _flags(row: Row, other: bool) -> Flags:
    if other and row.name in _OTHER_FLAGS:
        return _OTHER_FLAGS[row.name]
    return _FIRST_FLAGS.get(row.name, ("RW", "update") if row.write else ("RO", "access"))


def key_range(row: Row) -> tuple[int, int, int]:
    """Return first key, last key and step as COMMAND has them; zeros where there is no range."""
    match row.keys.kind:
        case KeyKind.RANGE:
            return row.keys.first, row.keys.last, row.keys.step
        case KeyKind.SORT | KeyKind.GEORADIUS:
            return 1, 1, 1
        case KeyKind.NUMKEYS if row.keys.last:
            return row.keys.last, row.keys.last, 1
    return 0, 0, 0


def specifications(row: Row) -> list[object]:
    """Return the key specifications of a command, as Redis 7 publishes them."""
    return list(_specifications(row))


def _specifications(row: Row) -> Iterator[object]:
    first, last, step = key_range(row)
    own, others = _flags(row, False), _flags(row, True)
    if first and own != others and row.keys.kind is KeyKind.RANGE:
        yield _spec(own, _index(first), _going_on(0, 1))
        yield _spec(others, _index(first + 1), _going_on(min(last, 0), step))
    elif first:
        yield _spec(own, _index(first), _going_on(last - first if last >= 0 else last, step))
    match row.keys.kind:
        case KeyKind.NUMKEYS:
            rule = {"keynumidx": 0, "firstkey": 1, "keystep": row.keys.step}
            yield _spec(others, _index(row.keys.first), {"type": "keynum", "spec": rule})
        case KeyKind.RENDERED:
            yield _spec(own, _UNKNOWN, _UNKNOWN)
        case KeyKind.STREAMS:
            # The words XREADGROUP begins with are the names of a group and a consumer.
            yield _spec(own, _keyword("STREAMS", 4 if row.write else 1), _going_on(-1, 1, 2))
        case KeyKind.SORT:
            yield _spec(own, _UNKNOWN, _UNKNOWN)
            if row.write:
                yield _spec(others, _UNKNOWN, _UNKNOWN)
        case KeyKind.GEORADIUS:
            for word in ("STORE", "STOREDIST"):
                yield _spec(others, _keyword(word, -row.arity), _going_on(0, 1))


_UNKNOWN: Mapping[str, object] = {"type": "unknown", "spec": {}}


def _index(position: int) -> Mapping[str, object]:
    return {"type": "index", "spec": {"index": position}}


def _keyword(word: str, start: int) -> Mapping[str, object]:
    return {"type": "keyword", "spec": {"keyword": word, "startfrom": start}}


def _going_on(last: int, step: int, limit: int = 0) -> Mapping[str, object]:
    return {"type": "range", "spec": {"lastkey": last, "keystep": step, "limit": limit}}


def _spec(flags: Flags, begin: Mapping[str, object], find: Mapping[str, object]) -> object:
    return {
        "flags": frozenset(map(Simple, flags)),
        "begin_search": begin,
        "find_keys": find,
    }
