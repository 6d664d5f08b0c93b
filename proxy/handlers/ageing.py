"""Times to live are longer in Redis than clients know: what is served stale must still be there.

Used by `in_redis` and `transactions` for commands that say a time, and by `lookups` the other way
round for commands that ask for one; `told` and `terms` read the same options.

Always true: a word that a node would refuse stays as it is, so that the node refuses it.
"""

from collections.abc import Sequence

from proxy import resp, wire
from proxy.wire.rules import Time

# Seconds become milliseconds, because a window may have a part of a second.
_FINER = {
    b"setex": b"PSETEX", b"expire": b"PEXPIRE", b"expireat": b"PEXPIREAT",
    b"EX": b"PX", b"EXAT": b"PXAT",
}  # fmt: skip

# Of options that give a time: what one unit of it is in milliseconds, and whether it is a date.
OPTIONS = {b"EX": (1000, False), b"PX": (1, False), b"EXAT": (1000, True), b"PXAT": (1, True)}

# Where options begin; of MSETEX behind its pairs.
_BEHIND = {Time.SET: 3, Time.GETEX: 2}

_UNITS = {Time.SECONDS: 1000, Time.MILLIS: 1, Time.UNIX: 1000, Time.UNIX_MILLIS: 1}

# Redis takes milliseconds of 63 bits; nearer to that nothing is added.
_FAR = 1 << 62


def lengthened(ruleset: wire.Ruleset, frame: bytes, window_ms: int) -> bytes:
    """Return a command with each time that it says made longer by a window."""
    if not window_ms:
        return frame
    words = resp.decode(frame)
    index = ruleset.find_command(words[0])
    time = ruleset.commands[index].time if index >= 0 else Time.UNSAID
    if time in _UNITS:
        changed = _longer(words, 2, _UNITS[time], window_ms)
        if changed:
            words[0] = _FINER.get(words[0].lower(), words[0])
    elif time in (Time.SET, Time.GETEX, Time.MSETEX):
        changed = _option(words, _first_option(words, time), window_ms)
    else:
        changed = time is Time.RESTORE and _longer(words, 2, 1, window_ms)
    return wire.pack(words) if changed else frame


def told(ms: int, window_ms: int, seconds: bool) -> int:
    """Return what a client is told of a time in Redis; -1 and -2 are no times."""
    left = ms if ms < 0 else max(0, ms - window_ms)
    return (left + 500) // 1000 if seconds and left >= 0 else left


def _first_option(words: Sequence[bytes], time: Time) -> int:
    if time is not Time.MSETEX:
        return _BEHIND[time]
    return 2 + 2 * int(words[1]) if words[1].isdigit() else len(words)


def _option(words: list[bytes], first: int, window_ms: int) -> bool:
    for at in range(first, len(words) - 1):
        option = words[at].upper()
        if option in OPTIONS:
            changed = _longer(words, at + 1, OPTIONS[option][0], window_ms)
            if changed:
                words[at] = _FINER.get(option, option)
            return changed
    return False


def _longer(words: list[bytes], at: int, unit_ms: int, window_ms: int) -> bool:
    """Add a window to a time; what ends a key at once still does."""
    word = words[at]
    if not word.isdigit() or word.startswith(b"0") or len(word) > 19:
        return False
    longer = int(word) * unit_ms + window_ms
    if longer >= _FAR:
        return False
    words[at] = b"%d" % longer
    return True
