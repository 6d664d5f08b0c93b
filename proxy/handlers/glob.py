"""Redis' glob patterns over short names, CONFIG GET or PUBSUB CHANNELS, and over many keys.

`*` any text, `?` one byte, `[a-c]` `[^a]` one of a set, `\\` takes the next byte literally; with
fold, case is ignored. Both ways run in time proportional to pattern times text: of all the stars
only the last one seen is tried again.
"""

import re

# A longer pattern is nobody's, and would only cost time.
LONGEST_PATTERN = 256


def matches(pattern: bytes, text: bytes, fold: bool = True) -> bool:
    """Return whether the whole text fits the pattern."""
    if len(pattern) > LONGEST_PATTERN:
        return False
    if fold:
        pattern, text = pattern.lower(), text.lower()
    at = place = 0
    star, retry = -1, 0
    while place < len(text):
        if pattern[at : at + 1] == b"*":
            star, retry = at + 1, place
            at = star
            continue
        after = _one(pattern, at, text[place])
        if after:
            at, place = after, place + 1
        elif star >= 0:
            retry += 1
            at, place = star, retry
        else:
            return False
    return not pattern[at:].strip(b"*")


def _one(pattern: bytes, at: int, byte: int) -> int:
    """Return where the pattern goes on behind the part that fits one byte, or 0."""
    if at >= len(pattern):
        return 0
    mark = pattern[at : at + 1]
    if mark == b"?":
        return at + 1
    if mark == b"[":
        return _set(pattern, at + 1, byte)
    if mark == b"\\" and at + 1 < len(pattern):
        at += 1
    return at + 1 if pattern[at] == byte else 0


def _set(pattern: bytes, at: int, byte: int) -> int:
    """Return where the set that begins at a position ends, if the byte is in it, or 0."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    found = False
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            at += 1
        low = high = pattern[at]
        if pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            high = pattern[at + 2]
            at += 2
        found = found or min(low, high) <= byte <= max(low, high)
        at += 1
    # A set without an end ends with the pattern, as in Redis.
    return min(at + 1, len(pattern)) if found != negated else 0


def literal_prefix(pattern: bytes) -> bytes:
    """Return what every key that fits begins with; the whole pattern where it is one key."""
    return next((pattern[:at] for at, byte in enumerate(pattern) if byte in b"*?[\\"), pattern)


def expression(pattern: bytes) -> re.Pattern[bytes]:
    """Return what finds the keys that fit a pattern, with `fullmatch`.

    For pages of thousands of keys, where a step of Python per byte would hold up everybody.
    """
    parts = [b""]  # what stands between the stars
    at = 0
    while at < len(pattern):
        mark = pattern[at : at + 1]
        at += 1
        if mark == b"*":
            parts.append(b"")
        elif mark == b"?":
            parts[-1] += b"."
        elif mark == b"[":
            among, at = _set_expression(pattern, at)
            parts[-1] += among
        else:
            if mark == b"\\" and at < len(pattern):
                mark = pattern[at : at + 1]
                at += 1
            parts[-1] += re.escape(mark)
    first, *rest = parts
    if rest:
        # Where a part between two stars first fits is as good a place as any later one, so no
        # group is tried twice: without that, a few stars would take seconds.
        rest = [b"(?>.*?%b)" % part for part in rest[:-1] if part] + [b".*" + rest[-1]]
    return re.compile(first + b"".join(rest), re.DOTALL)


def _set_expression(pattern: bytes, at: int) -> tuple[bytes, int]:
    """Return the expression of the set that begins at a position, and where the pattern goes on."""
    fits = bytes(byte for byte in range(256) if _set(pattern, at, byte))
    end = _set(pattern, at, fits[0]) if fits else _set_end(pattern, at)
    # A set that nothing fits can never match.
    return (b"[%b]" % re.escape(fits) if fits else b"(?!)"), end


def _set_end(pattern: bytes, at: int) -> int:
    """Return where a set ends that no byte fits."""
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        at += 2 if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern) else 1
    return min(at + 1, len(pattern))
