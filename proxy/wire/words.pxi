# The words of the command that is being judged: where they lie, and which of them are keys, values
# or members. A part of downstream.pyx, which includes it.

cdef enum:
    KEYS_UNSURE = -1
    KEYS_BLOCKING = -2
    KEYS_UNPAIRED = -3
    KEYS_UNBALANCED = -4

cdef struct KeyPlaces:
    KeyPlace* items
    Py_ssize_t count
    Py_ssize_t capacity

# Where the words and keys of the command that is being judged lie. One thread judges one command
# at a time, so all clients share them.
cdef Words WORDS
cdef KeyPlaces KEYS
# How the command that is being judged is changed, and how much goes behind it.
cdef Edit EDIT
cdef int FOLLOWERS = 0
EDIT.made = False
WORDS.items = NULL
WORDS.count = WORDS.capacity = 0
KEYS.items = NULL
KEYS.count = KEYS.capacity = 0



cdef int _add_key(Py_ssize_t word) except -100:
    cdef KeyPlace* moved
    cdef Py_ssize_t capacity
    if KEYS.count == KEYS.capacity:
        capacity = KEYS.capacity * 2 if KEYS.capacity else 64
        moved = <KeyPlace*> realloc(KEYS.items, capacity * sizeof(KeyPlace))
        if moved == NULL:
            raise MemoryError()
        KEYS.items = moved
        KEYS.capacity = capacity
    KEYS.items[KEYS.count].word = word
    KEYS.count += 1
    return 0


cdef bint _word_is(const char* frame, Py_ssize_t index, const char* upper, Py_ssize_t size) noexcept:
    """Whether a word is this one, case ignored; upper holds letters only."""
    cdef Word* word = &WORDS.items[index]
    cdef Py_ssize_t i
    if word.size != size:
        return False
    for i in range(size):
        if (frame[word.at + i] & 0xDF) != upper[i]:
            return False
    return True


cdef int64_t _word_number(const char* frame, Py_ssize_t index) noexcept:
    """The value of a word of digits, -1 for anything else."""
    cdef Word* word = &WORDS.items[index]
    cdef int64_t value = 0
    cdef Py_ssize_t i
    cdef char mark
    if word.size == 0 or word.size > 9 or (frame[word.at] == c"0" and word.size > 1):
        return -1
    for i in range(word.size):
        mark = frame[word.at + i]
        if not c"0" <= mark <= c"9":
            return -1
        value = value * 10 + (mark - c"0")
    return value


cdef bytes _keys_error(Ruleset rules, const char* frame, int index):
    """The line for a command whose keys are not certain, which _find_keys has said of it."""
    cdef CommandRow* row = &rules.rows[index]
    cdef bytes text, digits
    if row.kind == KEYS_STREAMS and _find_streams(frame, row) == KEYS_UNBALANCED:
        return rules.errors.unbalanced
    words = rules.commands[index].count_errors
    if words is None or row.first >= WORDS.count:
        return rules.errors.syntax
    text = _text(frame, row.first)
    digits = text.removeprefix(b"-")
    # An integer as Redis reads it.
    if (not digits.isdigit() or len(digits) > 19 or (digits.startswith(b"0") and text != b"0")
            or not -2**63 <= int(text) < 2**63):
        return words.no_integer
    return words.too_small if int(text) <= 0 else words.too_large


cdef bytes _text(const char* frame, Py_ssize_t index):
    return PyBytes_FromStringAndSize(frame + WORDS.items[index].at, WORDS.items[index].size)


cdef bint _takes(CommandRow* row, Py_ssize_t count) noexcept:
    """Whether a command may have so many words."""
    return count == row.arity if row.arity > 0 else count >= -row.arity


cdef bint _arity_fits(CommandRow* row) noexcept:
    """Whether the command being judged has as many words as its row asks for."""
    return _takes(row, WORDS.count)


cdef int _find_keys(const char* frame, CommandRow* row) except -100:
    """Fill KEYS with the words that are keys; a negative status where that is not certain."""
    cdef Py_ssize_t i, last
    cdef int64_t count
    KEYS.count = 0
    if row.kind == KEYS_RANGE:
        last = row.last if row.last >= 0 else WORDS.count + row.last
        if last >= WORDS.count:
            return KEYS_UNSURE
        if row.step > 1 and (WORDS.count - row.first) % row.step:
            return KEYS_UNPAIRED
        i = row.first
        while i <= last:
            _add_key(i)
            i += row.step
        return 0
    if row.kind == KEYS_NUMKEYS or row.kind == KEYS_RENDERED:
        if row.first >= WORDS.count:
            return KEYS_UNSURE
        count = _word_number(frame, row.first)
        # With a step each key stands before its value.
        last = max(row.step, 1)
        if count <= 0 or count > (WORDS.count - row.first - 1) // last:
            return KEYS_UNSURE
        if row.last:
            _add_key(row.last)
        for i in range(count):
            _add_key(row.first + 1 + i * last)
        return 0
    if row.kind == KEYS_STREAMS:
        return _find_streams(frame, row)
    return _find_stores(frame, row)


cdef int _find_streams(const char* frame, CommandRow* row) except -100:
    """XREAD and XREADGROUP: options, then STREAMS, then as many ids as names.

    Where a node's own key finder could take an option's value for the word STREAMS, or looks for it
    only behind `GROUP group consumer`, the keys are not certain.
    """
    cdef Py_ssize_t i = 1
    cdef Py_ssize_t names
    cdef int status = 0
    while i < WORDS.count:
        if _word_is(frame, i, "STREAMS", 7):
            names = WORDS.count - i - 1
            if names % 2:
                return KEYS_UNBALANCED
            if names == 0 or (row.write and i < 4):
                return KEYS_UNSURE
            names //= 2
            while names > 0:
                i += 1
                names -= 1
                _add_key(i)
            return status
        if _word_is(frame, i, "BLOCK", 5) or _word_is(frame, i, "COUNT", 5):
            if i + 1 < WORDS.count and _word_is(frame, i + 1, "STREAMS", 7):
                return KEYS_UNSURE
            if _word_is(frame, i, "BLOCK", 5):
                status = KEYS_BLOCKING
            i += 2
        elif row.write and _word_is(frame, i, "GROUP", 5):
            i += 3
        elif row.write and _word_is(frame, i, "NOACK", 5):
            i += 1
        else:
            return KEYS_UNSURE
    return KEYS_UNSURE


cdef bint _is_store(const char* frame, Py_ssize_t index) noexcept:
    return _word_is(frame, index, "STORE", 5) or _word_is(frame, index, "STOREDIST", 9)


cdef int _find_stores(const char* frame, CommandRow* row) except -100:
    """SORT and GEORADIUS: the first key, and the one behind STORE, read option by option.

    An option's value may spell another option, and a node's key finder and its command do not
    always agree on which it is; the same with several STOREs. Then the keys are not certain.
    """
    cdef bint sorts = row.kind == KEYS_SORT
    cdef Py_ssize_t i = 2 if sorts else -row.arity
    cdef bint stored = False
    if WORDS.count < 2 or (row.arity == -6 and WORDS.count > 5 and _is_store(frame, 5)):
        return KEYS_UNSURE
    _add_key(1)
    while i < WORDS.count:
        if _word_is(frame, i, "STORE", 5) or (not sorts and _is_store(frame, i)):
            if not row.write or stored or i + 1 >= WORDS.count or _is_option(frame, i + 1, sorts):
                return KEYS_UNSURE
            stored = True
            _add_key(i + 1)
            i += 2
        elif sorts and _word_is(frame, i, "LIMIT", 5):
            i += 3
        elif sorts and (_word_is(frame, i, "BY", 2) or _word_is(frame, i, "GET", 3)):
            i += 2
        elif not sorts and _word_is(frame, i, "COUNT", 5):
            if i + 1 < WORDS.count and _is_store(frame, i + 1):
                return KEYS_UNSURE
            i += 2
        else:
            i += 1
    return 0


cdef bint _is_option(const char* frame, Py_ssize_t index, bint sorts) noexcept:
    """Whether what stands behind STORE could be read as an option instead of a key."""
    if not sorts:
        return _is_store(frame, index)
    return (_word_is(frame, index, "STORE", 5) or _word_is(frame, index, "LIMIT", 5)
            or _word_is(frame, index, "BY", 2) or _word_is(frame, index, "GET", 3))


cdef Span _span(const char* frame, WordPlaces* places, Py_ssize_t key) noexcept:
    """Return where the values or members of the command being judged stand, for one of its keys."""
    cdef Span span
    span.first = places.first
    span.step = places.step
    span.end = WORDS.count
    if places.first == NEXT_WORDS:
        span.first = key + 1
    elif places.first < 0:
        span = _span_behind_options(frame, places.first)
    if span.step == 0:
        span.step = 1
        span.end = min(span.end, span.first + 1) if span.first else 0
    return span


cdef Span _span_behind_options(const char* frame, int what) noexcept:
    """ZADD, GEOADD, XADD and HSETEX. Where a node would refuse the options anyway: anything."""
    cdef Span span
    cdef Py_ssize_t i = 2
    span.end = WORDS.count
    span.step = 2
    if what == SCORED_WORDS or what == PLACED_WORDS:
        while i < WORDS.count and (
                _word_is(frame, i, "NX", 2) or _word_is(frame, i, "XX", 2)
                or _word_is(frame, i, "GT", 2) or _word_is(frame, i, "LT", 2)
                or _word_is(frame, i, "CH", 2) or _word_is(frame, i, "INCR", 4)):
            i += 1
        span.first = i + (1 if what == SCORED_WORDS else 2)
        span.step = 2 if what == SCORED_WORDS else 3
    elif what == ENTRY_WORDS:
        while i < WORDS.count:
            if _word_is(frame, i, "NOMKSTREAM", 10):
                i += 1
            elif _word_is(frame, i, "LIMIT", 5):
                i += 2
            elif _word_is(frame, i, "MAXLEN", 6) or _word_is(frame, i, "MINID", 5):
                i += 1
                if i < WORDS.count and WORDS.items[i].size == 1 and frame[WORDS.items[i].at] in b"=~":
                    i += 1
                i += 1
            else:
                break
        span.first = i + 2
    else:
        while i < WORDS.count and not _word_is(frame, i, "FIELDS", 6):
            i += 1
        span.first = i + 3
    return span


cdef bint _takes_over(CommandRow* row, KeyPlace* mark) noexcept:
    """Whether a key is given what a key of another keyspace holds, where nobody has judged it."""
    cdef Py_ssize_t i
    if mark.word != KEYS.items[0 if row.makes == MAKES_FIRST else KEYS.count - 1].word:
        return False
    if row.makes != MAKES_FIRST and row.makes != MAKES_SECOND and row.makes != MAKES_CARRIED:
        return False
    for i in range(KEYS.count):
        if KEYS.items[i].keyspace != mark.keyspace:
            return True
    return False


cdef Py_ssize_t _longest(Span* span) noexcept:
    cdef Py_ssize_t i = span.first
    cdef Py_ssize_t longest = 0
    while i < span.end:
        longest = max(longest, WORDS.items[i].size)
        i += span.step
    return longest




cdef int _collect(bytes command) except -1:
    """Fill WORDS from a frame that has passed before."""
    return _collect_words(<char*> command, len(command))


cdef int _collect_words(const char* frame, Py_ssize_t size) except -1:
    cdef Progress progress
    cdef Bounds bounds
    bounds.words = bounds.word_bytes = size
    WORDS.count = 0
    progress_reset(&progress)
    scan_request(frame, size, &bounds, &progress, &WORDS)
    return 0


_collect(pack((b"ping",)))  # WORDS has room for one word from here on
