"""Which commands the differential run sends, as a table of forms, and how a form becomes words.

A form is written like the syntax lines of Redis' own documentation:

    ZADD z [NX|XX] [CH] {d m}+        optional in brackets, a choice with |, one to three times {}+

Words in capitals are sent as they are; the others name a kind of word, see `KINDS`. Every key of a
case carries the case's hash tag, so that commands with several keys run on a cluster; only the
commands that the proxy splits by itself take keys of other tags (kinds that begin with `*`).

Left out, and why, is the list `EXCLUDED`: everything else that the proxy forwards is here.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

FORMS = """
GET s
SET s v
SET s v [NX|XX] [GET] [EX sec|PX ms|EXAT at|PXAT atms|KEEPTTL]
SETEX s sec v
PSETEX s ms v
SETNX s v
GETSET s v
GETDEL s
GETEX s [EX sec|PX ms|EXAT at|PXAT atms|PERSIST]
APPEND s v
STRLEN s
GETRANGE s i i
SUBSTR s i i
SETRANGE s off v
INCR s
DECR s
INCRBY s i
DECRBY s i
INCRBYFLOAT s d
LCS s s [LEN|IDX] [MINMATCHLEN n] [WITHMATCHLEN]
MSETNX {s v}+
MGET {*s}+
MSET {*s v}+
DEL {*any}+
UNLINK {*any}+
EXISTS {*any}+
TOUCH {*any}+
SETBIT s off b
GETBIT s off
BITCOUNT s
BITCOUNT s i i [BYTE|BIT]
BITPOS s b
BITPOS s b i [i]
BITPOS s b i i BIT
BITOP (AND|OR|XOR) s {s}+
BITOP NOT s s
BITFIELD s {(GET type off|SET type off i|INCRBY type off i)}+
BITFIELD s OVERFLOW (SAT|FAIL|WRAP) {(SET type off i|INCRBY type off i)}+
BITFIELD_RO s {GET type off}+
TYPE any
TTL any
PTTL any
EXPIRETIME any
PEXPIRETIME any
EXPIRE any sec [NX|XX]
PEXPIRE any ms [NX|XX]
EXPIREAT any at [NX|XX|GT|LT]
PEXPIREAT any atms [NX|XX|GT|LT]
PERSIST any
RENAME any any
RENAMENX any any
COPY any any [REPLACE]
OBJECT ENCODING any
OBJECT REFCOUNT l
DUMP s
RESTORE any (0|ms) payload [REPLACE]
SORT l [LIMIT i n] [ASC|DESC] [ALPHA]
SORT l ALPHA STORE l
SORT_RO set ALPHA [DESC]
LPUSH l {v}+
RPUSH l {v}+
LPUSHX l {v}+
RPUSHX l {v}+
LPOP l [n]
RPOP l [n]
LLEN l
LRANGE l i i
LINDEX l i
LSET l i v
LTRIM l i i
LREM l i v
LINSERT l (BEFORE|AFTER) v v
LPOS l v [RANK i] [COUNT n] [MAXLEN n]
LMOVE l l (LEFT|RIGHT) (LEFT|RIGHT)
RPOPLPUSH l l
LMPOP #l (LEFT|RIGHT) [COUNT n]
HSET h {f v}+
HMSET h {f v}+
HSETNX h f v
HGET h f
HMGET h {f}+
HDEL h {f}+
HEXISTS h f
HLEN h
HSTRLEN h f
HKEYS h
HVALS h
HGETALL h
HINCRBY h f i
HINCRBYFLOAT h f d
HRANDFIELD h 1000 [WITHVALUES]
HSCAN h 0 [MATCH glob] [COUNT 1000]
SADD set {m}+
SREM set {m}+
SCARD set
SISMEMBER set m
SMISMEMBER set {m}+
SMEMBERS set
SMOVE set set m
SPOP set 1000
SRANDMEMBER set 1000
SINTER {set}+
SUNION {set}+
SDIFF {set}+
SINTERSTORE set {set}+
SUNIONSTORE set {set}+
SDIFFSTORE set {set}+
SINTERCARD #set [LIMIT n]
SSCAN set 0 [MATCH glob] [COUNT 1000]
ZADD z {d m}+
ZADD z [NX|XX] [CH] {d m}+
ZADD z [XX] [GT|LT] [CH] {d m}+
ZADD z INCR d m
ZADD y {0 m}+
ZINCRBY z d m
ZREM z {m}+
ZCARD z
ZCOUNT z min max
ZLEXCOUNT y lex lex
ZSCORE z m
ZMSCORE z {m}+
ZRANK z m
ZREVRANK z m
ZRANGE z i i [WITHSCORES]
ZRANGE z i i REV
ZRANGE z min max BYSCORE [LIMIT i n] [WITHSCORES]
ZRANGE y lex lex BYLEX [REV] [LIMIT i n]
ZREVRANGE z i i [WITHSCORES]
ZRANGEBYSCORE z min max [WITHSCORES] [LIMIT i n]
ZREVRANGEBYSCORE z max min [WITHSCORES] [LIMIT i n]
ZRANGEBYLEX y lex lex [LIMIT i n]
ZREVRANGEBYLEX y lex lex [LIMIT i n]
ZRANGESTORE z z i i
ZREMRANGEBYRANK z i i
ZREMRANGEBYSCORE z min max
ZREMRANGEBYLEX y lex lex
ZPOPMIN z [n]
ZPOPMAX z [n]
ZMPOP #z (MIN|MAX) [COUNT n]
ZUNION #z [AGGREGATE SUM|AGGREGATE MIN|AGGREGATE MAX] [WITHSCORES]
ZINTER #z [WITHSCORES]
ZDIFF #z [WITHSCORES]
ZUNION 2 z z WEIGHTS d d WITHSCORES
ZUNIONSTORE z #z [AGGREGATE MAX]
ZINTERSTORE z #z
ZDIFFSTORE z #z
ZINTERCARD #z [LIMIT n]
ZRANDMEMBER z 1000 [WITHSCORES]
ZSCAN z 0 [MATCH glob] [COUNT 1000]
GEOADD g [NX|XX] [CH] {lon lat m}+
GEOPOS g {m}+
GEODIST g m m [M|KM|FT|MI]
GEOHASH g {m}+
GEOSEARCH g FROMLONLAT lon lat BYRADIUS radius KM [ASC|DESC] [COUNT n] [WITHDIST]
GEOSEARCH g FROMLONLAT lon lat BYRADIUS radius KM ASC WITHCOORD WITHHASH
GEOSEARCH g FROMMEMBER m BYBOX radius radius KM ASC
GEOSEARCHSTORE g g FROMLONLAT lon lat BYRADIUS radius KM [ASC] [STOREDIST]
GEORADIUS g lon lat radius KM ASC [WITHDIST]
GEORADIUS g lon lat radius KM STORE g
GEORADIUS_RO g lon lat radius KM ASC
GEORADIUSBYMEMBER g m radius KM ASC
GEORADIUSBYMEMBER_RO g m radius KM ASC
PFADD p {v}+
PFCOUNT {p}+
PFMERGE p {p}+
XADD x [NOMKSTREAM] [MAXLEN = n|MAXLEN ~ n|MINID id] id {f v}+
XLEN x
XRANGE x (-|id) (+|id) [COUNT n]
XREVRANGE x (+|id) (-|id) [COUNT n]
XDEL x {id}+
XTRIM x (MAXLEN n|MAXLEN = n|MINID id)
XREAD [COUNT n] STREAMS x id
XREAD STREAMS x x id id
XSETID x id
XGROUP CREATE x gr (0|$|id) [MKSTREAM]
XGROUP CREATECONSUMER x gr co
XGROUP DELCONSUMER x gr co
XGROUP SETID x gr (0|$|id)
XGROUP DESTROY x gr
XREADGROUP GROUP gr co [COUNT n] [NOACK] STREAMS x (>|0|id)
XACK x gr {id}+
XPENDING x gr
XCLAIM x gr co 0 {id}+ JUSTID
XAUTOCLAIM x gr co 0 id JUSTID
XINFO STREAM x
XINFO GROUPS x
PING [v]
ECHO v
SELECT 0
CLIENT GETNAME
CLIENT SETNAME name
"""

EXCLUDED = {
    "RANDOMKEY": "random",
    "SPOP, SRANDMEMBER, HRANDFIELD, ZRANDMEMBER with a count below the size": "random",
    "XADD with the id *": "time",
    "XPENDING with a range, XINFO CONSUMERS, XINFO STREAM FULL": "idle times",
    "OBJECT IDLETIME, OBJECT FREQ": "time, and the clusters' own eviction policy",
    "MEMORY USAGE": "depends on the allocator's state",
    "TIME, LASTSAVE, INFO": "time",
    "DUMP of anything but a string": "the order inside depends on the node's hash seed",
    "SORT with BY or GET": "a cluster refuses them, a plain server does not",
    "CLIENT SETINFO": "the proxy knows it whatever the node's version, Redis since 7.2",
    "COPY with DB, MOVE, SELECT of another database": "a cluster has one database",
    "blocking commands, transactions, scripts, pub/sub": "the proxy does not forward them",
}

# Replies whose order is the node's own: compared as multisets of groups of this many elements.
UNORDERED = {
    "HGETALL": 2,
    "HKEYS": 1,
    "HVALS": 1,
    "HRANDFIELD": 1,
    "SMEMBERS": 1,
    "SINTER": 1,
    "SUNION": 1,
    "SDIFF": 1,
    "SPOP": 1,
    "SRANDMEMBER": 1,
    "ZRANDMEMBER": 1,
    "HSCAN": 1,
    "SSCAN": 1,
    "ZSCAN": 1,
}

# Replies that are a time: they may differ by this much, in their own unit.
TOLERANCE = {"TTL": 2, "EXPIRETIME": 2, "PTTL": 3000, "PEXPIRETIME": 3000}

TAGS = 4  # hash tags of one case; all but the first are only used by what the proxy splits

_WORDS = [
    b"a",
    b"b",
    b"red",
    b"green",
    b"10",
    b"-3",
    b"3.5",
    b"",
    b"x\x00y\r\n",
    b"\xff\xfe",
    b"A b",
]
_TYPES = [b"u8", b"i8", b"u4", b"i16", b"u63", b"i64", b"u1"]
_GARBAGE = [
    b"",
    b"abc",
    b"-1",
    b"0",
    b"1",
    b"99999999999999999999",
    b"nan",
    b"+inf",
    b"1e400",
    b"(",
    b"*",
]

# These stay unspoiled: without their count, which asks for everything, the first four answer at
# random, and another number behind SELECT names a database that only a plain server has.
_UNSPOILED = frozenset((b"SPOP", b"SRANDMEMBER", b"HRANDFIELD", b"ZRANDMEMBER", b"SELECT"))

# Where a case's keys live by kind; two of each are enough for moves and stores to meet. Sorted sets
# for ranges by name (y) keep to themselves: with different scores such a range is unspecified.
KEY_KINDS = ("s", "l", "h", "set", "z", "g", "p", "x")
ALL_KINDS = (*KEY_KINDS, "y")


@dataclass(slots=True)
class Case:
    """One run of commands over one set of keys."""

    chance: random.Random
    tags: list[bytes]
    payloads: list[bytes]
    kinds: dict[str, Callable[[], bytes]] = field(init=False)

    def __post_init__(self) -> None:
        pick, number = self.chance.choice, self.chance.randint
        self.kinds = {
            "v": self._value,
            "f": lambda: b"f%d" % number(0, 5),
            "m": lambda: b"m%d" % number(0, 8),
            "i": lambda: b"%d" % number(-6, 12),
            "n": lambda: b"%d" % number(0, 6),
            "b": lambda: b"%d" % number(0, 1),
            "d": lambda: pick([b"1", b"2.5", b"-0.125", b"1e3", b"0", b"inf", b"-inf", b"3.14159"]),
            "off": lambda: b"%d" % number(0, 80),
            "sec": lambda: pick([b"1000", b"5000", b"100000"]),
            "ms": lambda: pick([b"1000000", b"5000000"]),
            "at": lambda: b"%d" % number(4_102_444_800, 4_102_444_805),
            "atms": lambda: b"%d" % number(4_102_444_800_000, 4_102_444_800_005),
            "type": lambda: pick(_TYPES),
            "payload": lambda: pick(self.payloads),
            "glob": lambda: pick([b"*", b"f*", b"m[0-4]", b"?1", b"zz*"]),
            "min": lambda: pick([b"-inf", b"0", b"(1", b"2"]),
            "max": lambda: pick([b"+inf", b"3", b"(2.5", b"1000"]),
            "lex": lambda: pick([b"-", b"+", b"[m1", b"(m5", b"[m7"]),
            "lon": lambda: b"%.4f" % self.chance.uniform(13, 14),
            "lat": lambda: b"%.4f" % self.chance.uniform(52, 53),
            "radius": lambda: pick([b"1", b"20", b"100"]),
            "id": lambda: pick([b"%d" % number(1, 40), b"%d-%d" % (number(1, 40), number(0, 3))]),
            "gr": lambda: b"group%d" % number(0, 1),
            "co": lambda: b"worker%d" % number(0, 1),
            "name": lambda: pick([b"app", b"two words", b"", b"v1"]),
            "any": lambda: self._key(pick(KEY_KINDS), 0),
            "*any": lambda: self._key(pick(KEY_KINDS), number(0, TAGS - 1)),
            "*s": lambda: self._key("s", number(0, TAGS - 1)),
        }
        for kind in ALL_KINDS:
            self.kinds[kind] = lambda kind=kind: self._key(kind, 0)

    def _key(self, kind: str, tag: int) -> bytes:
        if kind != "y" and self.chance.random() < 0.04:  # a key that holds something else
            kind = self.chance.choice(KEY_KINDS)
        return b"{%b}%b%d" % (self.tags[tag], kind.encode(), self.chance.randint(0, 1))

    def _value(self) -> bytes:
        dice = self.chance.random()
        if dice < 0.85:
            return self.chance.choice(_WORDS)
        return self.chance.randbytes(self.chance.randint(1, 20 if dice < 0.98 else 20_000))

    @property
    def keys(self) -> list[bytes]:
        """Return every key that this case can have written."""
        return [
            b"{%b}%b%d" % (tag, kind.encode(), number)
            for tag in self.tags
            for kind in ALL_KINDS
            for number in (0, 1)
        ]

    def command(self) -> list[bytes]:
        """Return the words of a random command, now and then with a mistake in it."""
        words = expand(self.chance.choice(_PARSED), self)
        dice = self.chance.random()
        if dice < 0.06 and words[0] not in _UNSPOILED:
            self._spoil(words)
        elif dice < 0.08:
            words[0] = words[0].lower()
        elif dice < 0.085:
            words[0] = self.chance.choice([b"NOSUCH", b"GETT", b"get2", words[0] + b"X"])
        return words

    def _spoil(self, words: list[bytes]) -> None:
        how = self.chance.randrange(4)
        if len(words) == 1 or how == 0:
            words.append(self.chance.choice(_GARBAGE))
            return
        at = self.chance.randrange(1, len(words))
        if how == 1:
            del words[at]
        elif how == 2:
            words.insert(at, words[at])
        elif not words[at].startswith(b"{"):
            words[at] = self.chance.choice(_GARBAGE)


# A form is a list of words, of choices (a tuple of forms, None for "nothing"), and of repeated
# forms (a list).
Form = list["str | tuple[Form | None, ...] | Form"]
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def parse_form(text: str) -> Form:
    """Return a form of the table in the shape that `expand` reads."""
    return _sequence(re.findall(r"[\[\](){}|]\+?|[^\s\[\](){}|]+", text), "")[0][0]


def _sequence(tokens: list[str], closing: str) -> tuple[list[Form], bool]:
    """Read up to the closing bracket; return the alternatives and whether a + follows it."""
    alternatives: list[Form] = [[]]
    while tokens:
        token = tokens.pop(0)
        if closing and token[0] == closing:
            return alternatives, token.endswith("+")
        if token == "|":
            alternatives.append([])
        elif token in _CLOSING:
            inner, repeated = _sequence(tokens, _CLOSING[token])
            if repeated:
                alternatives[-1].append(inner[0])
            else:
                alternatives[-1].append((*inner, None) if token == "[" else tuple(inner))
        else:
            alternatives[-1].append(token)
    return alternatives, False


def expand(form: Form, case: Case) -> list[bytes]:
    """Return the words of one random command of a form."""
    words: list[bytes] = []
    for part in form:
        if isinstance(part, tuple):
            chosen = case.chance.choice(part)
            words += expand(chosen, case) if chosen is not None else []
        elif isinstance(part, list):
            for _ in range(case.chance.randint(1, 3)):
                words += expand(part, case)
        elif part[0] == "#" and part[1:] in case.kinds:
            count = case.chance.randint(1, 3)
            words += [b"%d" % count, *(case.kinds[part[1:]]() for _ in range(count))]
        elif part in case.kinds:
            words.append(case.kinds[part]())
        else:
            words.append(part.encode())
    return words


_PARSED = [parse_form(line) for line in FORMS.strip().splitlines()]
