# The limits of the command that is being judged are charged: all of them, or none.
# A part of downstream.pyx, which includes it.

cdef enum:
    # How often a command waits for cells that others then take before it.
    MOST_ROUNDS = 4


cdef const char* NOBODY = ""  # the id of a limit that has only one


cdef int _limit(Downstream client, const char* frame, int index, Match* found,
                double now) except -1:
    """Charge a command to all its limits, or to none: then answer it, or wait to know more.

    found is of the last key.
    """
    cdef Ruleset rules = client.ruleset
    cdef Match other
    cdef Py_ssize_t i
    cdef int status = PASSED
    begin()
    if KEYS.count == 0:
        status = _charge(client, client.rates, frame, index, -1, NULL, now)
    for i in range(KEYS.count):
        if i != KEYS.count - 1 and KEYS.items[i].duties & RATE_DUTY:
            rules.match(<const uint8_t*> frame + WORDS.items[KEYS.items[i].word].at,
                        WORDS.items[KEYS.items[i].word].size, &other)
        if status != FULL and client.rates:
            status = _charge(client, client.rates, frame, index, i, NULL, now)
        if status != FULL and KEYS.items[i].duties & RATE_DUTY:
            status = _charge(client, <tuple> rules.space_rates[KEYS.items[i].keyspace], frame, index,
                                  i, found if i == KEYS.count - 1 else &other, now)
    status = settle(client.rounds >= MOST_ROUNDS)
    if status == UNKNOWN:
        client.rounds += 1
        ask(client)
        return HELD
    if status == FULL:
        return _reply(client, refusal(), KEYS.items[0].keyspace if KEYS.count else -1,
                           rules.rows[index].family)
    return PASSED


cdef int _charge(Downstream client, tuple rates, const char* frame, int index, Py_ssize_t place,
                 Match* found, double now) except -1:
    """Charge a command to limits that one of its keys leads to, or to those without a key."""
    cdef Rate rate
    cdef int keyspace = KEYS.items[place].keyspace if place >= 0 else -1
    cdef int status = PASSED
    for rate in rates:
        if rate.counted != NULL and not rate.counted[index]:
            continue
        if rate.per == PER_KEY or rate.per == PER_SEGMENT or rate.per == PER_KEYSPACE:
            if place < 0:
                continue
            status = _charge_key(client, rate, frame, place, found, now)
        elif once(rate):
            status = _charge_client(client, rate, now)
        if (status == FULL or status == SPARED) and keyspace >= 0 and rates is not client.rates:
            client.ruleset.breaches.count(keyspace, RATE_RULE, REFUSED if status == FULL else OK)
        if status == FULL:
            return FULL
    return PASSED


cdef int _charge_client(Downstream client, Rate rate, double now) except -1:
    if rate.per == PER_CLIENT:
        return rate.check(<const uint8_t*> &client.lane, sizeof(int), now)
    if rate.per == PER_USER:
        return rate.check(<const uint8_t*> <char*> client.user, len(client.user), now)
    if rate.per == PER_IP:
        return rate.check(<const uint8_t*> <char*> client.address, len(client.address), now)
    return rate.check(<const uint8_t*> NOBODY, 0, now)


cdef int _charge_key(Downstream client, Rate rate, const char* frame, Py_ssize_t place,
                     Match* found, double now) except -1:
    cdef Ruleset rules = client.ruleset
    cdef KeyPlace* mark = &KEYS.items[place]
    cdef Word* word = &WORDS.items[mark.word]
    cdef const uint8_t* key = <const uint8_t*> frame + word.at
    cdef const char* name
    cdef Py_ssize_t size = 0
    if rate.per == PER_KEY:
        return rate.check(key, word.size, now)
    if rate.per == PER_SEGMENT:
        return rate.check(key + found.at[rate.segment], found.end[rate.segment]
                          - found.at[rate.segment], now)
    if _used_before(place):
        return PASSED
    name = NOBODY
    if mark.keyspace >= 0:
        name = PyUnicode_AsUTF8AndSize(rules.keyspaces[mark.keyspace].name, &size)
    return rate.check(<const uint8_t*> name, size, now)


cdef bint _used_before(Py_ssize_t place) noexcept:
    """Whether a key before this one is of the same keyspace: a command uses each once."""
    cdef int keyspace = KEYS.items[place].keyspace
    # From here back, because the last one of the same is near where there are many keys.
    while place > 0:
        place -= 1
        if KEYS.items[place].keyspace == keyspace:
            return True
    return False
