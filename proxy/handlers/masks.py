"""What is told of a command's words: which of them decide, and what stands for the others.

Used by the access log and by the slow log's page and line. The words that policies judge by are
kept: names of commands and keys, options, and the numbers that belong to them. Data is replaced by
something of the same length and kind, so that the rules judge it alike: digits by 0, what looks
like JSON by an empty object or array, everything else by *. A word that is in no table is data.

Always true: nothing of a command that may carry a secret is told but its name, and a word is
printable ASCII of at most 256 characters, whatever was sent.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from proxy import log
from proxy.commands import COMMANDS

# Placeholders are no longer than this; the true length is told beside them.
MOST_PLACEHOLDER = 64

# Commands of which nothing but the name is told: who logs in, and what administers a server.
SECRET = {row.name for row in COMMANDS if "admin" in row.flags} | {b"auth", b"hello", b"migrate"}

# Words that are options, in whichever command, and those that a number follows.
NUMBERED = frozenset(
    b"EX PX EXAT PXAT COUNT LIMIT BLOCK MAXLEN MINID IDLE TIME RETRYCOUNT RANK ~ =".split()
)
OPTIONS = NUMBERED | frozenset(
    b"NX XX GT LT CH INCR GET KEEPTTL PERSIST ANY REV BYSCORE BYLEX WITHSCORES WITHSCORE "
    b"WITHVALUES ASC DESC ALPHA STORE STOREDIST WEIGHTS AGGREGATE SUM MIN MAX LEFT RIGHT "
    b"BEFORE AFTER MATCH TYPE STREAMS GROUP NOACK NOMKSTREAM JUSTID FORCE FIELDS FNX FXX BIT "
    b"BYTE AND OR XOR NOT REPLACE ABSTTL FREQ DB ASYNC SYNC $ > * + -".split()
)

# Where numbers decide that no option announces.
_NUMBERS: Mapping[bytes, tuple[int, ...]] = {
    **dict.fromkeys(b"expire pexpire expireat pexpireat setex psetex setrange setbit getbit incrby "
                    b"decrby eval eval_ro evalsha evalsha_ro fcall fcall_ro spop srandmember lpop "
                    b"rpop lindex sscan hscan zscan".split(), (2,)),
    **dict.fromkeys(b"getrange substr lrange ltrim zrange zrevrange".split(), (2, 3)),
    b"zremrangebyrank": (2, 3),
    **dict.fromkeys(b"select scan".split(), (1,)),
}  # fmt: skip

# Where data stands, whatever it looks like: the first place, and how far apart; 0 is one only.
_DATA: Mapping[bytes, tuple[int, int]] = {
    **dict.fromkeys(b"set setnx getset append publish spublish".split(), (2, 0)),
    **dict.fromkeys(b"setex psetex setrange lset hsetnx".split(), (3, 0)),
    **dict.fromkeys(b"mset msetnx".split(), (2, 2)),
    **dict.fromkeys(b"hset hmset hget hmget hdel hexists hstrlen lpush rpush lpushx rpushx".split(),
                    (2, 1)),
    **dict.fromkeys(b"sadd srem sismember smismember zrem zscore zmscore zrank zrevrank".split(),
                    (2, 1)),
    b"pfadd": (2, 1),
}  # fmt: skip

# Names that are no keys of nodes and decide like them: channels, digests of scripts, functions.
_NAMES: Mapping[bytes, int] = dict.fromkeys(
    b"publish spublish evalsha evalsha_ro fcall fcall_ro".split(), 1
)

_NUMBER = re.compile(rb"[-+]?[0-9]{1,19}(?:\.[0-9]{1,17})?")


class Command(NamedTuple):
    """The beginning of a command, as `wire.Trace` has it."""

    name: bytes  # of its row; empty for an unknown command
    words: Sequence[bytes]  # each cut
    sizes: Sequence[int]  # of those words, whole
    total: int
    keys: Sequence[int]


class Told(NamedTuple):
    """What is told of a command."""

    words: list[str]
    lengths: dict[str, int]  # of placeholders that are shorter than what they stand for
    keys: list[str]


def tell(command: Command, name_of: Callable[[bytes], str], values: bool = False) -> Told:
    """Return what is told of a command; name_of says how a key or a channel is called.

    With values, data is told as well, of a word as much as there is.
    """
    if not command.name:
        return Told(["(unknown)"], {}, [])
    heads = command.name.count(b"|") + 1
    words = [log.clean(word) for word in command.words[:heads]]
    if is_secret(command.name):
        return Told([*words, *["(redacted)"] * (command.total > heads)], {}, [])
    names = {*command.keys, _NAMES.get(command.name, -1)}
    lengths: dict[str, int] = {}
    for at in range(heads, len(command.words)):
        word, size = command.words[at], command.sizes[at]
        if at in names:
            words.append(name_of(word))
        elif values or _decides(command, at):
            words.append(log.clean(word))
        else:
            words.append(placeholder(word, size))
            if size > MOST_PLACEHOLDER:
                lengths[str(at)] = size
    if command.total > len(command.words):
        words.append(f"... ({command.total - len(command.words)} more arguments)")
    return Told(words, lengths, [name_of(command.words[at]) for at in command.keys])


def is_secret(name: bytes) -> bool:
    """Return whether nothing is told of a command but its name."""
    return name in SECRET or name.partition(b"|")[0] in SECRET


def _decides(command: Command, at: int) -> bool:
    """Return whether a word that is no name is an option, or a number that rules judge by."""
    first, step = _DATA.get(command.name, (0, 0))
    if first and (at == first or (step and at > first and (at - first) % step == 0)):
        return False
    word = command.words[at]
    if word.upper() in OPTIONS:
        return True
    if not _NUMBER.fullmatch(word):
        return False
    before = command.words[at - 1].upper()
    # LIMIT has two numbers.
    return (
        at in _NUMBERS.get(command.name, ())
        or before in NUMBERED
        or (at > 2 and command.words[at - 2].upper() == b"LIMIT")
    )


def placeholder(word: bytes, size: int) -> str:
    """Return what stands for a word of so many bytes, of which word is the beginning."""
    length = min(size, MOST_PLACEHOLDER)
    if word.isdigit() and size == len(word):
        return "0" * length
    if length >= 2 and (word[:1], word[-1:]) in ((b"{", b"}"), (b"[", b"]")):
        return f"{word[:1].decode()}{' ' * (length - 2)}{word[-1:].decode()}"
    return "*" * length
