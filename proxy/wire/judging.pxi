# One command is decided on: answered, forwarded by its keys, made a Request, or told to wait.
# A part of downstream.pyx, which includes it.

cdef enum:
    OWN_BYTES = 10  # of "sidecache:", with which names of ours begin

cdef int _judge(Downstream client, const char* frame, Py_ssize_t size, double now) except -1:
    """Decide on one command: answer it, forward it, make it a Request, or wait."""
    cdef Ruleset rules = client.ruleset
    cdef int index = _row_of(client, frame)
    cdef CommandRow* row
    cdef bytes plain, refusal
    if index < 0 and _speaks_http(frame):
        _fail(client, SPEAKS_HTTP)
        return TAKEN
    if client.role < 0 and (index < 0 or not rules.rows[index].unauthenticated):
        return _reply(client, rules.errors.noauth, -1, rules.counters.families - 1)
    if index < 0:
        return _ask(client, frame, size, -1, now)
    row = &rules.rows[index]
    if row.alias:
        plain = _plain(client, frame, size, index)
        _collect(plain)
        frame = <char*> plain
        size = len(plain)
    if not _arity_fits(row):
        return _refuse_command(client, frame, size, index, rules.commands[index].arity_error, now)
    if client.allowed != NULL and not client.allowed[index]:
        _tell(client, "command", rules.commands[index].name, len(rules.commands[index].name))
        return _refuse_command(client, frame, size, index, rules.commands[index].denied_error, now)
    if row.path == PATH_REFUSED:
        return _refuse_command(client, frame, size, index, rules.commands[index].refused_error, now)
    if client.limits is not None and client.limits.concern(index):
        refusal = client.limits.refusal(frame, &WORDS, index)
        if refusal is not None:
            return _reply(client, refusal, -1, row.family)
    if client.router.pause and 0 < row.pause <= client.router.pause:
        return WAIT
    if row.path == BARRIER and (client.pending or client.following) and not client.capture:
        return WAIT
    client.last_row = index
    if client.batch.observer is not None and client.rounds == 0:
        client.batch.observer(client.owner, PyBytes_FromStringAndSize(frame, size))
    if row.kind == KEYS_RENDERED or row.runs:
        return _ask_for_script(client, frame, size, index, row, now)
    if row.path == LOCAL or row.path == BARRIER or row.path == CONTAINER:
        return _ask_if_room(client, frame, size, index, row, now)
    return _route(client, frame, size, index, row, now)


cdef int _ask_for_script(Downstream client, const char* frame, Py_ssize_t size, int index,
                         CommandRow* row, double now) except -1:
    """Make a Request of a script's command, in the words of its run.

    Whoever runs its body by EVAL, EVALSHA or FCALL needs the same rights, and names the same keys.
    """
    cdef Ruleset rules = client.ruleset
    cdef int offered = index
    cdef int64_t count = 0
    cdef list arguments
    cdef bytes plain
    if row.kind != KEYS_RENDERED:
        offered = _offered(rules, frame, index)
        count = _word_number(frame, 2)
        if offered < 0 or not 0 <= count <= WORDS.count - 3:
            return _ask_if_room(client, frame, size, index, row, now)
        row = &rules.rows[offered]
        if client.allowed != NULL and not client.allowed[offered]:
            _tell(client, "command", row.name, row.size)
            return _reply(client, rules.commands[offered].denied_error, -1, row.family)
        arguments = [_text(frame, i) for i in range(3 + count, WORDS.count)]
        if not _takes(row, len(arguments) + 1):
            return _reply(client, rules.commands[offered].arity_error, -1, row.family)
    else:
        arguments = [_text(frame, i) for i in range(1, WORDS.count)]
    script = rules.commands[offered].script
    run = script.run_of(arguments)
    if run is None:
        return _reply(client, script.colon_error, -1, row.family)
    if offered != index and run[1:-len(arguments) or None] != [
            _text(frame, i) for i in range(2, 3 + count)]:
        return _reply(client, script.keys_error, -1, row.family)
    plain = pack([rules.commands[offered].name, *run])
    _collect(plain)
    return _ask_if_room(client, <char*> plain, len(plain), offered, row, now)


cdef int _offered(Ruleset rules, const char* frame, int index):
    """Return the row of the command that offers the script which is run, or -1."""
    cdef bytes called = _text(frame, 1)
    return rules.offered[index].get(
        called if rules.rows[index].runs == RUNS_BODIES else called.lower(), -1)


cdef int _refuse_command(Downstream client, const char* frame, Py_ssize_t size, int index,
                         bytes line, double now) except -1:
    """Refuse a command for what it is; an EXEC goes to its handler, because it ends all the same."""
    if _ends_something(client, &client.ruleset.rows[index]):
        _ask(client, frame, size, index, now)
        client.found.refusal = line
        return ASKED
    return _reply(client, line, -1, client.ruleset.rows[index].family)


cdef bint _ends_something(Downstream client, CommandRow* row) noexcept:
    """Whether a command is an EXEC that ends a transaction or watches, refused or not."""
    return row.ends and (client.capture or client.serial)


cdef bytes _plain(Downstream client, const char* frame, Py_ssize_t size, int index):
    """Return the frame with the command's own name, which is what nodes know."""
    cdef Word* word = &WORDS.items[0]
    cdef bytes name = client.ruleset.commands[index].name.partition(b"|")[0]
    return b"%b$%d\r\n%b%b" % (frame[:word.head], len(name), name, frame[word.at + word.size:size])


cdef int _row_of(Downstream client, const char* frame) noexcept:
    """Return the row of the command being judged, -1 where there is none."""
    cdef int index = client.ruleset.find(frame + WORDS.items[0].at, WORDS.items[0].size)
    if index < 0:
        return -1
    if client.ruleset.rows[index].path == CONTAINER and WORDS.count > 1:
        return _subcommand(client, frame, index)
    # A sub-command has two words: its row's name is nobody's first.
    return -1 if client.ruleset.rows[index].nested else index


cdef int _subcommand(Downstream client, const char* frame, int index) noexcept:
    """Return the row of "container|word", or -1 where the container has no such word."""
    cdef CommandRow* row = &client.ruleset.rows[index]
    cdef Word* word = &WORDS.items[1]
    cdef char name[NAME_BYTES]
    cdef Py_ssize_t i
    if row.size + 1 + word.size > NAME_BYTES:
        return -1
    for i in range(row.size):
        name[i] = row.name[i]
    name[row.size] = c"|"
    for i in range(word.size):
        name[row.size + 1 + i] = frame[word.at + i]
    return client.ruleset.find(name, row.size + 1 + word.size)


cdef int _route(Downstream client, const char* frame, Py_ssize_t size, int index, CommandRow* row,
                double now) except -1:
    """Forward a command by its keys, when they share a slot."""
    global FOLLOWERS
    cdef Ruleset rules = client.ruleset
    cdef int status = _find_keys(frame, row)
    cdef int cluster = -1
    cdef int slot = -1
    cdef int keyspace, key_cluster, key_slot, verdict
    cdef int duties = 0
    cdef bint split = False
    cdef bint renamed = False
    cdef Py_ssize_t i
    cdef Match found
    if status == KEYS_BLOCKING:
        return _ask_if_room(client, frame, size, index, row, now)
    if status == KEYS_UNPAIRED:
        return _reply(client, rules.commands[index].arity_error, -1, row.family)
    if status < 0 or KEYS.count == 0:
        return _reply(client, _keys_error(rules, frame, index), -1, row.family)
    for i in range(KEYS.count):
        refusal = _judge_key(client, frame, &KEYS.items[i], index, i, KEYS.items[0].keyspace, &found)
        if refusal is not None:
            _tell_of_key(client, refusal, frame, i, index)
            return _reply(client, refusal, found.keyspace, row.family)
        keyspace = found.keyspace
        duties |= KEYS.items[i].duties
        renamed = renamed or KEYS.items[i].tag != NO_TAG
        key_cluster = _cluster_of(client, keyspace)
        key_slot = 0
        if client.slots.is_sharded(key_cluster):
            key_slot = rules.slot_for(<const uint8_t*> frame + WORDS.items[KEYS.items[i].word].at,
                                      WORDS.items[KEYS.items[i].word].size, &found)
        if i == 0:
            cluster = key_cluster
            slot = key_slot
        elif key_cluster != cluster or key_slot != slot:
            if row.path != SPLIT:
                return _reply(client, rules.errors.crossslot if key_cluster == cluster
                                   else rules.errors.cross_cluster, keyspace, row.family)
            split = True
    if duties & BOUNDS_DUTY:
        refusal = _judge_bounds(client, frame, index)
        if refusal is not None:
            return _reply(client, refusal, KEYS.items[0].keyspace, row.family)
    if duties & VALUE_DUTY:
        refusal = _judge_values(client, frame, row)
        if refusal is not None:
            return _reply(client, refusal, KEYS.items[0].keyspace, row.family)
    EDIT.made = False
    FOLLOWERS = 0
    if duties & (TTL_DUTY | COLLECTION_DUTY):
        refusal = _judge_effects(client, frame, row)
        if refusal is not None:
            return _reply(client, refusal, KEYS.items[0].keyspace, row.family)
    if duties & RATE_DUTY or client.rates:
        verdict = _limit(client, frame, index, &found, now)
        if verdict != PASSED:
            return verdict
    if row.write:
        client.note_write(cluster)
    if duties & ORIGIN_DUTY and not client.capture:
        return _back(client, frame, size, index, row, cluster, slot, split, renamed, now)
    if split:
        return _ask(client, frame, size, index, now)
    if client.capture:
        return _capture(client, frame, size, index, cluster, slot, renamed, now)
    if renamed and row.names_in_reply:
        return _ask(client, frame, size, index, now)
    return _forward(client, frame, size, index, cluster, slot, renamed, now)


cdef int _ask_if_room(Downstream client, const char* frame, Py_ssize_t size, int index,
                      CommandRow* row, double now) except -1:
    """Make a Request of a command, if its limits have room: also those of the keys it names."""
    cdef Match found
    cdef KeyPlace* mark
    cdef Word* word
    cdef Py_ssize_t i
    cdef int verdict
    if row.free or not (client.ruleset.rates or row.takes):
        return _ask(client, frame, size, index, now)
    if row.kind == KEYS_NONE or _find_keys(frame, row) not in (0, KEYS_BLOCKING):
        KEYS.count = 0
    for i in range(KEYS.count):
        mark = &KEYS.items[i]
        word = &WORDS.items[mark.word]
        client.ruleset.match(<const uint8_t*> frame + word.at, word.size, &found)
        mark.keyspace = found.keyspace
        mark.duties = client.ruleset.spaces[found.keyspace].duties[index] if found.keyspace >= 0 else 0
    verdict = _limit(client, frame, index, &found, now)
    if verdict == PASSED and row.takes and _all_fine(client, frame, index):
        verdict = _refuse_lock(client, frame, row, now)
    return _ask(client, frame, size, index, now) if verdict == PASSED else verdict


cdef bint _all_fine(Downstream client, const char* frame, int index):
    """Whether no rule refuses a key of a command, and there is one."""
    cdef Match found
    cdef Py_ssize_t i
    for i in range(KEYS.count):
        if _judge_key(client, frame, &KEYS.items[i], index, i, KEYS.items[0].keyspace, &found) is not None:
            return False
    return KEYS.count > 0


cdef int _cluster_of(Downstream client, int keyspace) noexcept:
    if keyspace >= 0:
        return client.ruleset.spaces[keyspace].cluster
    return client.default_cluster if client.default_cluster >= 0 else client.ruleset.default_cluster


cdef bytes _judge_key(Downstream client, const char* frame, KeyPlace* mark, int command, int place,
                      int source, Match* found):
    """Return the error line for a key that a rule refuses, or None; note where its tag goes.

    place counts the command's keys from 0; source is the keyspace of its first, unless this is it.
    """
    cdef Ruleset rules = client.ruleset
    cdef Word* word = &WORDS.items[mark.word]
    cdef const uint8_t* key = <const uint8_t*> frame + word.at
    cdef KeyspaceRow* space
    mark.tag = NO_TAG
    mark.duties = 0
    if (key[0] == c"s" and word.size >= OWN_BYTES
            and memcmp(key, <const char*> "sidecache:", OWN_BYTES) == 0):
        # Leases, markers and counts: whoever could write them could undo rules.
        mark.keyspace = found.keyspace = -1
        return rules.errors.reserved
    rules.match(key, word.size, found)
    mark.keyspace = found.keyspace
    if (client.reach != NULL
            and not client.reach[found.keyspace if found.keyspace >= 0 else len(rules.keyspaces)]):
        return rules.errors.no_key
    if client.matcher is not None and not client.matcher.covers(key, word.size):
        return rules.errors.no_key
    if word.size > client.key_bytes:
        return rules.errors.long_key
    if found.keyspace < 0:
        if rules.reject_unmatched:
            return rules.errors.unmatched
        if word.size > rules.max_key_bytes or not _allowed(key, word.size, NULL):
            return rules.errors.bad_key
        return _passes_for_another(client, key, word.size, found)
    space = &rules.spaces[found.keyspace]
    mark.duties = space.duties[command]
    if mark.duties & COMMANDS_DUTY and rules.refuses(found.keyspace, COMMANDS_RULE):
        return rules.keyspaces[found.keyspace].denied_error
    if ((word.size > space.max_key_bytes or not _allowed(key, word.size, space.characters))
            and rules.refuses(found.keyspace, KEY_RULE)):
        return rules.keyspaces[found.keyspace].key_error
    if mark.duties & TYPE_DUTY:
        if (_is_of_another_type(rules, &rules.rows[command], space, place, source)
                and rules.refuses(found.keyspace, TYPE_RULE)):
            return rules.errors.wrong_type
    if space.tag == NO_TAG:
        return _passes_for_another(client, key, word.size, found)
    # A brace of the client's own would move the tag that is put in.
    if memchr(key, c"{", word.size) != NULL or memchr(key, c"}", word.size) != NULL:
        return rules.keyspaces[found.keyspace].brace_error
    mark.tag = space.tag
    if space.tag >= 0:
        mark.at = found.at[space.tag]
        mark.end = found.end[space.tag]
    return None


cdef inline bytes _passes_for_another(Downstream client, const uint8_t* key, Py_ssize_t size, Match* found):
    """Return the error line for a key that is how nodes name one of another keyspace, or None."""
    cdef Ruleset rules = client.ruleset
    cdef int keyspace
    if not rules.tagged or memchr(key, c"{", size) == NULL:
        return None
    keyspace = rules.keyspace_of_name(key, size)
    if keyspace < 0 or _cluster_of(client, keyspace) != _cluster_of(client, found.keyspace):
        return None
    return rules.keyspaces[keyspace].brace_error


cdef bint _is_of_another_type(Ruleset rules, CommandRow* row, KeyspaceRow* space, int place,
                              int source) noexcept:
    """Whether a command is for another type than a keyspace's, or carries one of another there."""
    if not space.type_bit & (row.other_types if place else row.first_types):
        return True
    return (row.makes == MAKES_CARRIED and place > 0 and source >= 0
            and not space.type_bit & rules.spaces[source].type_bit)


cdef bytes _judge_bounds(Downstream client, const char* frame, int index):
    """Return the error line for an argument that a keyspace of the command bounds, or None."""
    cdef Ruleset rules = client.ruleset
    cdef KeyPlace* mark
    cdef ArgumentBounds bounds
    cdef bytes refusal
    cdef Py_ssize_t i
    for i in range(KEYS.count):
        mark = &KEYS.items[i]
        if mark.duties & BOUNDS_DUTY:
            bounds = rules.space_bounds[mark.keyspace]
            refusal = bounds.refusal(frame, &WORDS, index)
            if refusal is not None and rules.refuses(mark.keyspace, BOUNDS_RULE):
                return refusal
    return None


cdef bytes _judge_values(Downstream client, const char* frame, CommandRow* row):
    """Return the error line for a value or member that a rule refuses, or None."""
    cdef Ruleset rules = client.ruleset
    cdef KeyspaceRow* space
    cdef KeyPlace* mark
    cdef Span span
    cdef Py_ssize_t i
    for i in range(KEYS.count):
        mark = &KEYS.items[i]
        if not mark.duties & VALUE_DUTY:
            continue
        space = &rules.spaces[mark.keyspace]
        span = _span(frame, &row.values, mark.word)
        if (space.max_value_bytes and _longest(&span) > space.max_value_bytes
                and rules.refuses(mark.keyspace, VALUE_RULE)):
            return rules.keyspaces[mark.keyspace].value_error
        span = _span(frame, &row.members, mark.word)
        if (space.max_member_bytes and _longest(&span) > space.max_member_bytes
                and rules.refuses(mark.keyspace, COLLECTION_RULE)):
            return rules.keyspaces[mark.keyspace].member_error
        if space.judged:
            line = _look_into_values(client, frame, row, mark)
            if line is not None and rules.refuses(mark.keyspace, VALUE_RULE):
                return line
    return None


cdef bytes _look_into_values(Downstream client, const char* frame, CommandRow* row, KeyPlace* mark):
    """Return the error line for a value that is no JSON or does not fit its schema, or None."""
    cdef KeyspaceRow* space = &client.ruleset.spaces[mark.keyspace]
    cdef Span span = _span(frame, &row.values, mark.word)
    cdef Py_ssize_t i = span.first
    cdef Py_ssize_t at = 0
    cdef Word* word
    cdef int status
    rule = client.ruleset.keyspaces[mark.keyspace]
    if (row.leaves == LEAVES_PART or (row.leaves == LEAVES_NUMBER and space.judged == FITTING_VALUES)
            or (row.values.first == 0 and _takes_over(row, mark))):
        return rule.part_error
    while i < span.end:
        word = &WORDS.items[i]
        status = judge_json(frame + word.at, word.size, &at)
        if status != JSON_FINE:
            return rule.json_errors[status] % at
        if space.judged == FITTING_VALUES:
            line = rule.fit(PyBytes_FromStringAndSize(frame + word.at, word.size))
            if line is not None:
                return line
        i += span.step
    return None


cdef bytes _judge_effects(Downstream client, const char* frame, CommandRow* row):
    """Note what rules change in a command and send behind it, or return the error line."""
    global FOLLOWERS
    cdef Ruleset rules = client.ruleset
    cdef KeyPlace* mark
    cdef Py_ssize_t i
    cdef int follows
    for i in range(KEYS.count):
        mark = &KEYS.items[i]
        mark.follows = 0
        if mark.duties & TTL_DUTY:
            follows = judge_time(rules, frame, &WORDS, row, i, mark.keyspace,
                                 KEYS.items[0].keyspace, &EDIT)
            if follows == REFUSED_FOR_TIME:
                return rules.keyspaces[mark.keyspace].ttl_error
            # To start the time of a key anew would break the client's own watch over it.
            if not (follows == REFRESH_FOLLOWS and client.serial and not row.write):
                mark.follows = follows
        if mark.duties & COLLECTION_DUTY:
            mark.follows |= judge_growth(rules, frame, &WORDS, row, i, mark.keyspace, &EDIT)
        FOLLOWERS += mark.follows != 0
    return None


cdef bytes _without_time(Downstream client, CommandRow* row, int place, int keyspace, bint apart):
    """Return the error line for a key that a command would leave without a time, or None."""
    cdef Ruleset rules = client.ruleset
    if (rules.spaces[keyspace].missing == MISSING_REJECT and may_be_without(row, place, apart)
            and rules.refuses(keyspace, TTL_RULE)):
        return rules.keyspaces[keyspace].ttl_error
    return None


cdef int _tell(Downstream client, str reason, const char* text, Py_ssize_t size) except -1:
    """Tell of a right that is missing; of a long name, the beginning."""
    if client.batch.on_denied is not None:
        client.batch.on_denied(client.owner, reason,
                             PyBytes_FromStringAndSize(text, min(size, MOST_TOLD_BYTES)))
    return 0


cdef int _tell_of_key(Downstream client, bytes refusal, const char* frame, Py_ssize_t place,
                      int index) except -1:
    """Tell of a key that was refused, if it was for want of a right."""
    cdef Word* word = &WORDS.items[KEYS.items[place].word]
    cdef int keyspace = KEYS.items[place].keyspace
    cdef bytes name
    if refusal is client.ruleset.errors.no_key:
        return _tell(client, "key", frame + word.at, word.size)
    if keyspace >= 0 and refusal is client.ruleset.keyspaces[keyspace].denied_error:
        name = client.ruleset.commands[index].name
        return _tell(client, "command", name, len(name))
    return 0


cdef bint _allowed(const uint8_t* key, Py_ssize_t size, const uint8_t* characters) noexcept:
    """Whether every byte of a key is one of the allowed ones; without a table, no control byte."""
    cdef Py_ssize_t i
    if characters == NULL:
        for i in range(size):
            if key[i] < 0x20 or key[i] == 0x7F:
                return False
        return True
    for i in range(size):
        if not characters[key[i]]:
            return False
    return True
