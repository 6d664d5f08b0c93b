# Locks that others hold are refused without Python. A part of downstream.pyx, which includes it.


cdef int _refuse_lock(Downstream client, const char* frame, CommandRow* row, double now) except -1:
    """Refuse a command that takes a lock which somebody else holds; PASSED leaves it to Python.

    So does whatever could be another answer than that it is held.
    """
    cdef Refusals refusals = client.router.refusals
    cdef Word* word = &WORDS.items[KEYS.items[0].word]
    cdef Refusal refusal
    cdef Py_ssize_t i
    if client.capture:
        return PASSED
    refusal = refusals.find(frame + word.at, word.size, now, client.batch.longest)
    if refusal is None:
        return PASSED
    if row.takes == TAKES_NAMED:
        # Of several locks it is PostgreSQL that knows, and of what is no text or too long Python.
        word = &WORDS.items[row.owner]
        if WORDS.count != row.alone or not word.size or refusal.holds(frame + word.at, word.size):
            return PASSED
        for i in range(WORDS.count):
            if not is_name(frame + WORDS.items[i].at, WORDS.items[i].size):
                return PASSED
    else:
        word = &WORDS.items[2]
        if row.takes == TAKES_SET and not _only_new(frame):
            return PASSED
        if refusal.names(frame + word.at, word.size):
            return PASSED
    refusals.count += 1
    return _say(client, refusal.line(client.protocol, now) if row.takes == TAKES_NAMED
                else b":0\r\n" if row.takes == TAKES_SETNX
                else b"_\r\n" if client.protocol == 3 else b"$-1\r\n",
                KEYS.items[0].keyspace, row.family, OK)


cdef bint _only_new(const char* frame) noexcept:
    """Whether a SET says NX and, at most, for how long; in the order of either."""
    cdef Word* word
    cdef bint new = False
    cdef bint timed = False
    cdef Py_ssize_t i = 3
    while i < WORDS.count:
        word = &WORDS.items[i]
        if word.size != 2 or (frame[word.at + 1] | 32) != c"x":
            return False
        if (frame[word.at] | 32) == c"n" and not new:
            new = True
        elif (frame[word.at] | 32) in (c"e", c"p") and not timed and i + 1 < WORDS.count:
            timed = True
            i += 1
            if not _plain_number(frame, &WORDS.items[i]):
                return False
        else:
            return False
        i += 1
    return new


cdef bint _plain_number(const char* frame, Word* word) noexcept:
    """Whether a word is a whole number of at most nine digits, and not zero."""
    cdef Py_ssize_t i
    if not 0 < word.size <= 9 or frame[word.at] == c"0":
        return False
    for i in range(word.at, word.at + word.size):
        if not c"0" <= frame[i] <= c"9":
            return False
    return True
