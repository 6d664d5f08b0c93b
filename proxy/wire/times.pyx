# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Times to live: what a command says about them, and what a keyspace makes of it.

Where a command has room for a time it is changed in place: the default goes in, what is too short
or too long is moved to the bound, in milliseconds from now. Where it has none, a PEXPIRE follows it.
Always true: what a node would refuse reaches it as the client wrote it; a time that means deletion
stays one; a command changed in place answers what it would have answered.
"""

from libc.stdint cimport INT64_MAX, int64_t
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from proxy.wire.edits cimport (
    Edit, edit_at, edit_number, edit_word, put_head, put_number, put_word, word_is, word_number,
)
from proxy.wire.frames cimport Octets, Words
from proxy.wire.tables cimport (
    MAKES_ALL, MAKES_CARRIED, MAKES_DECLARED, MAKES_FIRST, MAKES_NOTHING, MAKES_SECOND,
    MISSING_APPLY, MISSING_REJECT, REFRESH_NEVER, REFRESH_ON_READ, TIME_FIELDS, TIME_GETEX,
    TIME_MILLIS, TIME_MSETEX, TIME_PERSIST, TIME_RESTORE, TIME_SECONDS, TIME_SET, TIME_UNIX,
    TIME_UNIX_MILLIS, TIME_UNSAID, TTL_RULE, CommandRow, KeyspaceRow, Ruleset, chance,
)

cdef enum:
    # What a command says.
    NEVER_ENDS = 0   # the key will have no time to live
    LEFT = 1         # nothing that concerns a rule
    KEPT = 2         # the key keeps its time, if it has one
    FINITE = 3
    UNSURE = 4       # a node is going to refuse it, or knows more than we do

cdef struct Said:
    int what
    Py_ssize_t at      # the first word of the option, of `words` words
    Py_ssize_t words
    int64_t millis     # from now
    bint absolute      # RESTORE ... ABSTTL
    bint guarded       # XX: nothing comes into being


cdef int64_t _wall() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t> now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef int64_t default_time(KeyspaceRow* space) noexcept:
    """The default in milliseconds, less a random part of the jitter, and no less than the shortest."""
    cdef double most
    if space.jitter <= 0:
        return space.default_ms
    # Of what is left above the shortest time a part is taken, so that few end at that very time.
    most = min(space.default_ms * space.jitter, <double> (space.default_ms - space.shortest_ms))
    return max(1, space.default_ms - <int64_t> (most * (chance() / 4294967296.0)))


cdef bint makes(CommandRow* row, int place) noexcept:
    """Whether a command may bring its key at a place, counted from 0, into being."""
    if row.makes == MAKES_SECOND or row.makes == MAKES_CARRIED:
        return place == 1
    return row.makes == MAKES_ALL or row.makes == MAKES_DECLARED or (row.makes == MAKES_FIRST and place == 0)


cdef bint may_be_without(CommandRow* row, int place, bint apart) noexcept:
    """Whether a command that says no time may leave a key without one.

    What brings its time along may where it comes from a keyspace apart; of scripts nobody knows.
    """
    if row.makes == MAKES_DECLARED or (row.time != TIME_UNSAID and row.time != TIME_FIELDS):
        return False
    return makes(row, place) and (apart or row.makes != MAKES_CARRIED)


cdef int time_follows(KeyspaceRow* space, CommandRow* row, int place, bint said) noexcept:
    """What goes behind a command for its key, where it did not say the key's time itself."""
    cdef int follows = NOTHING_FOLLOWS
    if said:
        return NOTHING_FOLLOWS
    if row.touches and space.refresh != REFRESH_NEVER:
        if space.refresh == REFRESH_ON_READ:
            return REFRESH_FOLLOWS
        if _changes(row) and (row.makes == MAKES_NOTHING or makes(row, place)):
            return REFRESH_FOLLOWS
    if not makes(row, place):
        return NOTHING_FOLLOWS
    if row.makes == MAKES_CARRIED and space.longest_ms:
        follows = LONGEST_FOLLOWS
    return follows | EXPIRY_FOLLOWS if space.missing == MISSING_APPLY else follows


cdef bint _changes(CommandRow* row) noexcept:
    """Whether a command changes data: GETEX and HGETEX are writes because they may set a time."""
    return row.write and row.time != TIME_GETEX and not (
        row.time == TIME_FIELDS and row.makes == MAKES_NOTHING)


cdef int judge_time(Ruleset rules, const char* frame, const Words* words, CommandRow* row,
                    int place, int keyspace, int source, Edit* edit) noexcept:
    """Decide on the time of one key of a command: what follows, or REFUSED_FOR_TIME.

    source is the keyspace of the first key. The edit of an earlier key of the same command stays,
    with the shorter of the two times.
    """
    cdef KeyspaceRow* space = &rules.spaces[keyspace]
    cdef Said said
    cdef bint without
    said.what = LEFT
    said.guarded = said.absolute = False
    if row.time != TIME_UNSAID:
        _read(frame, words, row, &said)
    if space.missing == MISSING_REJECT:
        without = (said.what == NEVER_ENDS or (said.what == KEPT and not said.guarded)
                   or may_be_without(row, place, source != keyspace))
        if without and rules.refuses(keyspace, TTL_RULE):
            return REFUSED_FOR_TIME
    if (said.what == NEVER_ENDS and space.missing == MISSING_APPLY) or said.what == FINITE:
        _amend(rules, row, keyspace, &said, edit)
        if row.time != TIME_FIELDS:
            return NOTHING_FOLLOWS
    if row.time >= TIME_SECONDS and row.time <= TIME_RESTORE:
        return NOTHING_FOLLOWS
    place = time_follows(space, row, place, said.what == NEVER_ENDS)
    return place if place and rules.applies(keyspace, TTL_RULE) else NOTHING_FOLLOWS


cdef void _amend(Ruleset rules, CommandRow* row, int keyspace, Said* said, Edit* edit) noexcept:
    """Give a command the time that its keyspace has for it."""
    cdef KeyspaceRow* space = &rules.spaces[keyspace]
    cdef int64_t millis = said.millis
    if said.what == NEVER_ENDS:
        millis = default_time(space)
    elif space.longest_ms and millis > space.longest_ms:
        millis = space.longest_ms
    elif millis < space.shortest_ms:
        millis = space.shortest_ms
    else:
        return
    if edit.made and _number_of(edit) <= millis:
        return
    if not rules.applies(keyspace, TTL_RULE):
        return
    edit_at(edit, said.at, said.words)
    if row.time == TIME_SECONDS or row.time == TIME_MILLIS or row.time == TIME_UNIX or row.time == TIME_UNIX_MILLIS:
        edit.name = "PSETEX" if row.makes else "HPEXPIRE" if row.name[0] == c"h" else "PEXPIRE"
    elif row.time == TIME_PERSIST:
        edit.name = "PEXPIRE"
    elif row.time == TIME_RESTORE:
        millis += _wall() if said.absolute else 0
    else:
        edit_word(edit, "PX")
    edit_number(edit, millis)


cdef int64_t _number_of(Edit* edit) noexcept:
    """The time that an edit of options says: its last word."""
    cdef int64_t number = 0
    cdef int64_t power = 1
    cdef int i = edit.size - 3
    while i >= 0 and c"0" <= edit.text[i] <= c"9":
        number += (edit.text[i] - c"0") * power
        power *= 10
        i -= 1
    return number


cdef void _read(const char* frame, const Words* words, CommandRow* row, Said* said) noexcept:
    """Read what a command that can say a time says."""
    cdef int64_t count
    if row.time == TIME_SET:
        _read_options(frame, words, row, 3, said)
    elif row.time == TIME_GETEX or row.time == TIME_FIELDS:
        _read_options(frame, words, row, 2, said)
    elif row.time == TIME_MSETEX:
        if word_number(frame, words, 1, &count) and 0 < count <= (words.count - 2) // 2:
            _read_options(frame, words, row, 2 + 2 * count, said)
        else:
            said.what = UNSURE
    elif row.time == TIME_PERSIST:
        said.what = NEVER_ENDS
        said.at = 2
        said.words = 0
    elif row.time == TIME_RESTORE:
        _read_restore(frame, words, said)
    else:
        said.at = 2
        said.words = 1
        _read_number(frame, words, 2, row.time, said)


cdef void _read_number(const char* frame, const Words* words, Py_ssize_t index, int unit, Said* said) noexcept:
    """Read a time; at or before now it deletes or is refused, and both are the node's to do."""
    cdef int64_t number
    if not word_number(frame, words, index, &number):
        said.what = UNSURE
        return
    if unit == TIME_SECONDS or unit == TIME_UNIX:
        if number > INT64_MAX // 1000 or number < -(INT64_MAX // 1000):
            said.what = UNSURE
            return
        number *= 1000
    if (unit == TIME_UNIX or unit == TIME_UNIX_MILLIS) and number > 0:
        number -= _wall()
    elif number > INT64_MAX // 2 and number > INT64_MAX - _wall():
        said.what = UNSURE
        return
    said.what = FINITE if number > 0 else LEFT
    said.millis = number


cdef void _read_restore(const char* frame, const Words* words, Said* said) noexcept:
    """RESTORE key time value, where 0 is for ever, and options."""
    cdef Py_ssize_t i = 4
    cdef int64_t number
    while i < words.count:
        if word_is(frame, words, i, "ABSTTL"):
            said.absolute = True
        elif word_is(frame, words, i, "IDLETIME") or word_is(frame, words, i, "FREQ"):
            i += 1
        i += 1
    said.at = 2
    said.words = 1
    if word_number(frame, words, 2, &number) and number == 0:
        said.what = NEVER_ENDS
        return
    _read_number(frame, words, 2, TIME_UNIX_MILLIS if said.absolute else TIME_MILLIS, said)


cdef void _read_options(const char* frame, const Words* words, CommandRow* row, Py_ssize_t i, Said* said) noexcept:
    """Read the options of SET, GETEX, MSETEX, HSETEX and HGETEX from a word on."""
    cdef bint creates = row.time == TIME_SET or row.time == TIME_MSETEX
    cdef int64_t count
    cdef int unit
    said.what = NEVER_ENDS if creates else LEFT
    said.at = words.count
    said.words = 0
    while i < words.count:
        unit = _unit_of(frame, words, i)
        if unit or word_is(frame, words, i, "KEEPTTL") or word_is(frame, words, i, "PERSIST"):
            if said.words or (unit and i + 1 >= words.count):
                said.what = UNSURE
                return
            said.at = i
            said.words = 2 if unit else 1
            if unit:
                _read_number(frame, words, i + 1, unit, said)
                if said.what == UNSURE:
                    return
            elif row.time == TIME_GETEX:
                said.what = NEVER_ENDS
            else:
                said.what = KEPT if creates else LEFT
            i += said.words
        elif row.time == TIME_FIELDS and word_is(frame, words, i, "FIELDS"):
            if i + 1 >= words.count or not word_number(frame, words, i + 1, &count) or not 0 < count < words.count:
                said.what = UNSURE
                return
            i += 2 + count * (2 if row.makes else 1)
        elif word_is(frame, words, i, "NX") or word_is(frame, words, i, "FNX") or word_is(frame, words, i, "FXX"):
            i += 1
        elif word_is(frame, words, i, "XX"):
            said.guarded = True
            i += 1
        elif word_is(frame, words, i, "GET"):
            i += 1
        elif (word_is(frame, words, i, "IFEQ") or word_is(frame, words, i, "IFNE")
              or word_is(frame, words, i, "IFDEQ") or word_is(frame, words, i, "IFDNE")):
            i += 2
        else:
            said.what = UNSURE
            return


cdef int _unit_of(const char* frame, const Words* words, Py_ssize_t index) noexcept:
    """How the word behind an option says a time; 0 for another option."""
    if word_is(frame, words, index, "EX"):
        return TIME_SECONDS
    if word_is(frame, words, index, "PX"):
        return TIME_MILLIS
    if word_is(frame, words, index, "EXAT"):
        return TIME_UNIX
    return TIME_UNIX_MILLIS if word_is(frame, words, index, "PXAT") else 0


cdef Py_ssize_t put_expiry(Octets* out, const char* key, Py_ssize_t size, KeyspaceRow* space,
                           int follows) except -1:
    """Append the PEXPIRE that follows a command for a key; return the bytes."""
    cdef bint cuts = follows & LONGEST_FOLLOWS != 0
    cdef bint refreshes = follows & REFRESH_FOLLOWS != 0
    cdef Py_ssize_t written = put_head(out, 5 if cuts else 3 if refreshes else 4)
    written += put_word(out, "PEXPIRE", 7)
    written += put_word(out, key, size)
    written += put_number(out, space.longest_ms if cuts else default_time(space))
    if cuts:
        # To LT alone a key without a time has the longest of all.
        return written + put_word(out, "XX", 2) + put_word(out, "LT", 2)
    return written if refreshes else written + put_word(out, "NX", 2)
