"""Redis' glob patterns over short names of our own: CONFIG GET, COMMAND LIST.

`*` any text, `?` one byte, `[a-c]` `[^a]` one of a set, `\\` takes the next byte literally; case is
ignored. Runs in time proportional to pattern times text, without recursion: of all the stars only
the last one seen is tried again.
"""

# A longer pattern cannot be meant for names of at most 40 characters.
LONGEST_PATTERN = 256


def matches(pattern: bytes, text: bytes) -> bool:
    """Return whether the whole text fits the pattern."""
    if len(pattern) > LONGEST_PATTERN:
        return False
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
