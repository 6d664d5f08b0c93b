"""What commands do to keys, beside what the command table says: for rules about times and values.

One row for every command that makes, replaces or keeps a key or carries a value; others have no
effect that a rule of a keyspace asks for. The policy compiler reads it, the data plane executes it.

Columns
  name     a command of `commands.TABLE`
  makes    which of its keys it may bring into being or strip of their time: `-` none · `1` the
           first · `2` the second, or that behind STORE · `all` · carried declared as in
           `wire.rules.Makes`
  time     how it says a time to live (`wire.rules.Time`)
  values   its value words: `3` one · `2:` all from there on · `3:2` every other from there · `next`
           the word behind each key · scored placed entry fields as in `wire.rules.Found`
  members  its members, fields or elements, in the same spelling; of what can be bounded in number
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from proxy.wire.rules import Found, Grows, Leaves, Makes, Time, Words

TABLE = """
# name              makes  time        values  members

set                 all    set         2       -
setex               all    seconds     3       -
psetex              all    millis      3       -
setnx               all    -           2       -
getset              all    -           2       -
getex               -      getex       -       -
mset                all    -           next    -
msetnx              all    -           next    -
msetex              all    msetex      next    -
append              all    -           2       -
setrange            all    -           3       -
incr                all    -           -       -
incrby              all    -           -       -
incrbyfloat         all    -           -       -
decr                all    -           -       -
decrby              all    -           -       -
setbit              all    -           -       -
bitfield            all    -           -       -
bitop               1      -           -       -
pfadd               all    -           -       -
pfmerge             1      -           -       -

expire              -      seconds     -       -
pexpire             -      millis      -       -
expireat            -      unix        -       -
pexpireat           -      unix_millis -       -
persist             -      persist     -       -
restore             all    restore     3       -
rename              carried -          -       -
renamenx            carried -          -       -
copy                carried -          -       -
sort                2      -           -       -

hset                all    -           3:2     2:2
hmset               all    -           3:2     2:2
hsetnx              all    -           3       2
hsetex              all    fields      fields  -
hgetex              -      fields      -       -
hexpire             -      seconds     -       -
hpexpire            -      millis      -       -
hexpireat           -      unix        -       -
hpexpireat          -      unix_millis -       -
hincrby             all    -           -       2
hincrbyfloat        all    -           -       2

lpush               all    -           2:      2:
rpush               all    -           2:      2:
lpushx              -      -           2:      2:
rpushx              -      -           2:      2:
linsert             -      -           4       4
lset                -      -           3       3
lmove               2      -           -       -
rpoplpush           2      -           -       -
blmove              2      -           -       -
brpoplpush          2      -           -       -

sadd                all    -           2:      2:
smove               2      -           3       3
sinterstore         1      -           -       -
sunionstore         1      -           -       -
sdiffstore          1      -           -       -

zadd                all    -           scored  scored
zincrby             all    -           3       3
zinterstore         1      -           -       -
zunionstore         1      -           -       -
zdiffstore          1      -           -       -
zrangestore         1      -           -       -
geoadd              all    -           placed  placed
georadius           2      -           -       -
georadiusbymember   2      -           -       -
geosearchstore      1      -           -       -

xadd                all    -           entry   -
xgroup|create       all    -           -       -

eval              declared -         -       -
evalsha           declared -         -       -
fcall             declared -         -       -
"""

# Commands that add to a collection.
_GROWS: Mapping[Grows, str] = {
    Grows.ZSET: "zadd zincrby geoadd zinterstore zunionstore zdiffstore zrangestore georadius "
    "georadiusbymember geosearchstore",
    Grows.HEAD: "lpush lpushx rpoplpush brpoplpush sort",
    Grows.TAIL: "rpush rpushx linsert",
    Grows.SIDE: "lmove blmove",
    Grows.STREAM: "xadd",
    Grows.SET: "sadd smove sinterstore sunionstore sdiffstore",
    Grows.HASH: "hset hmset hsetnx hsetex hincrby hincrbyfloat",
    Grows.WHOLE: "rename renamenx copy restore",
}

# Commands that set whole values or add members, and those that take them away again: what is
# remembered of keyspaces that are bound to connections.
BINDING = frozenset(
    b"set setex psetex setnx getset mset msetnx del unlink getdel sadd srem".split()
)

# Types that a command of each family works on, by the names that policies have for them.
TYPES = ("string", "hash", "list", "set", "zset", "stream")
_BIT = {name: 1 << number for number, name in enumerate(TYPES)}
ANY = (1 << len(TYPES)) - 1

# What a policy calls a type, and what it is to a node.
TYPE_BITS: Mapping[str, int] = {**_BIT, "json": _BIT["string"], "counter": _BIT["string"]}

# Commands whose keys have types of their own: of the first, and of the others.
_MIXED: Mapping[bytes, tuple[int, int]] = {
    **dict.fromkeys((b"zinterstore", b"zunionstore", b"zdiffstore"),
                    (_BIT["zset"], _BIT["zset"] | _BIT["set"])),
    **dict.fromkeys((b"zinter", b"zunion", b"zdiff", b"zintercard"),
                    (_BIT["zset"] | _BIT["set"], _BIT["zset"] | _BIT["set"])),
    b"sort": (_BIT["list"] | _BIT["set"] | _BIT["zset"], _BIT["list"]),
    b"sort_ro": (_BIT["list"] | _BIT["set"] | _BIT["zset"], 0),
}  # fmt: skip


# Commands that do not carry the whole of what they leave behind, and can leave any bytes there.
_PARTIAL = frozenset(b"append setrange setbit bitfield bitop pfadd pfmerge restore".split())
_COUNTING = frozenset(b"incr incrby incrbyfloat decr decrby hincrby hincrbyfloat".split())


# Commands that only read one key and whose replies show whether it is there: nil, nothing, zero.
# What they leave open, such as a field that a hash has not, is asked again.
_LOOKUPS = frozenset(
    b"get strlen getrange substr mget exists type hget hmget hgetall hkeys hvals hlen hexists "
    b"hstrlen hrandfield smembers sismember smismember scard srandmember lrange llen lindex lpos "
    b"zrange zrevrange zrangebyscore zrevrangebyscore zrangebylex zrevrangebylex zscore zmscore "
    b"zrank zrevrank zcard zcount zlexcount zrandmember".split()
)

# Commands that tell of a time to live, in which keys outlive what clients know.
_CLOCKS = frozenset(b"ttl pttl expiretime pexpiretime".split())


class Effect(NamedTuple):
    """One line of the table."""

    makes: Makes = Makes.NOTHING
    time: Time = Time.UNSAID
    values: Words = Words()
    members: Words = Words()


_PLAIN = Effect()


def _words(text: str) -> Words:
    if text == "-":
        return Words()
    if text.isalpha():
        return Words(Found[text.upper()])
    first, several, step = text.partition(":")
    return Words(int(first), int(step or 1) if several else 0)


def _parse(table: str) -> dict[bytes, Effect]:
    effects = {}
    makes = {
        "-": Makes.NOTHING, "1": Makes.FIRST, "2": Makes.SECOND, "all": Makes.ALL,
        "carried": Makes.CARRIED, "declared": Makes.DECLARED,
    }  # fmt: skip
    for text in table.splitlines():
        if not text or text.startswith("#"):
            continue
        name, made, time, values, members = text.split()
        said = Time.UNSAID if time == "-" else Time[time.upper()]
        effects[name.encode()] = Effect(makes[made], said, _words(values), _words(members))
    return effects


EFFECTS: Mapping[bytes, Effect] = _parse(TABLE)
GROWS: Mapping[bytes, Grows] = {
    name.encode(): grows for grows, names in _GROWS.items() for name in names.split()
}


def effect(name: bytes) -> Effect:
    """Return what a command does to keys, as far as rules of keyspaces ask."""
    return EFFECTS.get(name, _PLAIN)


def leaves(name: bytes) -> Leaves:
    """Return what a command leaves behind."""
    if name in _PARTIAL:
        return Leaves.PART
    return Leaves.NUMBER if name in _COUNTING else Leaves.WHOLE


# What means something to a lock that PostgreSQL decides; everything else is refused there.
LOCKING = frozenset(
    (b"set", b"setnx", b"get", b"mget", b"exists", b"ttl", b"pttl", b"expiretime", b"pexpiretime",
     b"type", b"expire", b"pexpire", b"expireat", b"pexpireat", b"del", b"unlink")
)  # fmt: skip


def locks(words: Sequence[bytes]) -> bool:
    """Return whether a command means something to a lock: of SET, that it takes one."""
    name = words[0].lower()
    takes = name != b"set" or any(word.upper() == b"NX" for word in words[3:])
    return name in LOCKING and takes


def looks_up(name: bytes) -> bool:
    """Return whether a command only reads one key and its reply shows whether the key is there."""
    return name in _LOOKUPS


def tells_time(name: bytes) -> bool:
    """Return whether a command's reply is a time to live."""
    return name in _CLOCKS


def touches(name: bytes, family: str) -> bool:
    """Return whether a command uses the data of its keys, and is not about the keys themselves."""
    return family in TYPES and effect(name).time in (Time.UNSAID, Time.GETEX, Time.SET, Time.FIELDS)


def types(name: bytes, family: str) -> tuple[int, int]:
    """Return the types, as bits, that a command's first key may have, and its other keys."""
    if name in _MIXED:
        return _MIXED[name]
    bits = _BIT.get(family, ANY)
    return bits, bits
