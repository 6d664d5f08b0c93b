# A large request that will be refused is refused when its first words are there, and the rest of it
# is passed over as it comes: what nobody may send costs no memory.
# A part of downstream.pyx, which includes it.
#
# Only what cannot be undone by later words is foreseen. A request that is not refused here is judged
# as any other when it is whole, so nothing may be counted twice: of keyspaces in which any rule is
# on trial no rule is asked.

cdef int _foresee(Downstream client, const char* frame, Py_ssize_t size) except -1:
    """Refuse the request of which the beginning stands at frame, if that is enough for it."""
    cdef Ruleset rules = client.ruleset
    cdef Progress progress
    cdef CommandRow* row
    cdef Py_ssize_t words
    cdef bytes refusal
    cdef int index
    cdef int keyspace = -1
    # Words that begin further on are not waited for.
    if client.role < 0 or client.progress.position > AHEAD_BYTES:
        return 0
    WORDS.count = 0
    progress_reset(&progress)
    scan_request(frame, size, &client.bounds, &progress, &WORDS)
    words = WORDS.count + progress.left
    index = _named(client, frame)
    if index < 0:
        return 0
    row = &rules.rows[index]
    if _ends_something(client, row):
        return 0
    if words != row.arity if row.arity > 0 else words < -row.arity:
        refusal = rules.commands[index].arity_error
    elif client.allowed != NULL and not client.allowed[index]:
        _tell(client, "command", rules.commands[index].name, len(rules.commands[index].name))
        refusal = rules.commands[index].denied_error
    elif row.path == PATH_REFUSED:
        refusal = rules.commands[index].refused_error
    else:
        refusal = _foreseen_of_key(client, frame, index, row, &progress, &keyspace)
    if refusal is not None:
        _reply(client, refusal, keyspace, row.family)
        client.passing = True
        client.progress.need = 0
    return 0


cdef int _named(Downstream client, const char* frame) noexcept:
    """Return the row of the command whose first words are there, -1 where that is not certain."""
    cdef int index = _row_of(client, frame) if WORDS.count else -1
    return index if index >= 0 and client.ruleset.rows[index].path != CONTAINER else -1


cdef bytes _foreseen_of_key(Downstream client, const char* frame, int index, CommandRow* row,
                            Progress* progress, int* keyspace):
    """Return the error line for the first key, or for the length of the word that is coming."""
    cdef Ruleset rules = client.ruleset
    cdef Word* key
    cdef Match found
    cdef bytes refusal
    if (row.path != FORWARD and row.path != SPLIT) or row.kind != KEYS_RANGE or WORDS.count <= row.first:
        return None
    KEYS.count = 0
    _add_key(row.first)
    key = &WORDS.items[row.first]
    rules.match(<const uint8_t*> frame + key.at, key.size, &found)
    if found.keyspace >= 0 and not rules.in_force(found.keyspace):
        return None
    refusal = _judge_key(client, frame, &KEYS.items[0], index, 0, -1, &found)
    keyspace[0] = found.keyspace
    if refusal is not None:
        _tell_of_key(client, refusal, frame, 0, index)
        return refusal
    # Shorter words come in whole, with the bytes that are waited for anyway.
    if KEYS.items[0].duties & VALUE_DUTY and progress.need - progress.position > AHEAD_BYTES:
        return _foreseen_of_value(client, frame, row, progress)
    return None


cdef bytes _foreseen_of_value(Downstream client, const char* frame, CommandRow* row,
                              Progress* progress):
    """Return the error line for the word that is coming where it is a value, and too large."""
    cdef int keyspace = KEYS.items[0].keyspace
    cdef KeyspaceRow* space = &client.ruleset.spaces[keyspace]
    cdef const char* begins = <const char*> memchr(
        frame + progress.position, c"\n", progress.need - progress.position) + 1
    cdef Py_ssize_t size = progress.need - 2 - (begins - frame)
    if (space.max_value_bytes and size > space.max_value_bytes and _stands_at(&row.values, row.first)
            and client.ruleset.refuses(keyspace, VALUE_RULE)):
        return client.ruleset.keyspaces[keyspace].value_error
    if (space.max_member_bytes and size > space.max_member_bytes
            and _stands_at(&row.members, row.first)
            and client.ruleset.refuses(keyspace, COLLECTION_RULE)):
        return client.ruleset.keyspaces[keyspace].member_error
    return None


cdef bint _stands_at(WordPlaces* places, Py_ssize_t key) noexcept:
    """Whether the word behind those that are there is at one of the places, options apart."""
    cdef Py_ssize_t first = key + 1 if places.first == NEXT_WORDS else places.first
    if first <= 0 or WORDS.count < first:
        return False
    return (WORDS.count - first) % places.step == 0 if places.step else WORDS.count == first
