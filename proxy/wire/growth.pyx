# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""How large a collection may grow: the trim that goes behind each command that adds to one.

A sorted set is cut by rank, a list at the end that is not kept, a stream within XADD itself. Sets
and hashes have no order, so a small script takes members out at random, and only from those that
have too many. Always true: a trim run twice, or late, removes nothing that is within the limit.
"""

from libc.stdint cimport int64_t
from libc.string cimport strlen

from proxy.wire.edits cimport (
    Edit, edit_at, edit_number, edit_word, put_head, put_number, put_word, word_is, word_number,
)
from proxy.wire.frames cimport Octets, Words
from proxy.wire.tables cimport (
    COLLECTION_RULE, GROWS_HASH, GROWS_HEAD, GROWS_NOTHING, GROWS_SET, GROWS_SIDE, GROWS_STREAM,
    GROWS_TAIL, GROWS_WHOLE, GROWS_ZSET, MAKES_CARRIED, MAKES_SECOND, CommandRow, KeyspaceRow, Ruleset,
)
from proxy.wire.times cimport HEAD_GREW, NOTHING_FOLLOWS, TRIM_FOLLOWS

# Fields go in portions, because Lua's unpack has a limit of some thousands.
cdef const char* SET_SCRIPT = (
    "local n=redis.call('SCARD',KEYS[1])-ARGV[1] if n>0 then redis.call('SPOP',KEYS[1],n) end return n")
cdef const char* HASH_SCRIPT = (
    "local n=redis.call('HLEN',KEYS[1])-ARGV[1] while n>0 do local m=math.min(n,1000) "
    "redis.call('HDEL',KEYS[1],unpack(redis.call('HRANDFIELD',KEYS[1],m))) n=n-m end return n")

# What came as a whole may be of any type. Its number is negative where the lowest are kept, or of a
# list the oldest; which end of that is the older nobody has seen, and it is taken for one of LPUSH.
cdef const char* WHOLE_SCRIPT = (
    "local k,m=KEYS[1],tonumber(ARGV[1]) local n,low=math.abs(m),m<0 "
    "local t=redis.call('TYPE',k).ok if t=='zset' then "
    "redis.call('ZREMRANGEBYRANK',k,low and n or 0,low and -1 or -n-1) elseif t=='list' then "
    "redis.call('LTRIM',k,low and -n or 0,low and -1 or n-1) elseif t=='stream' then "
    "redis.call('XTRIM',k,'MAXLEN',n) elseif t=='set' then local o=redis.call('SCARD',k)-n "
    "if o>0 then redis.call('SPOP',k,o) end elseif t=='hash' then local o=redis.call('HLEN',k)-n "
    "while o>0 do local p=math.min(o,1000) "
    "redis.call('HDEL',k,unpack(redis.call('HRANDFIELD',k,p))) o=o-p end end")


cdef int judge_growth(Ruleset rules, const char* frame, const Words* words, CommandRow* row,
                      int place, int keyspace, Edit* edit) noexcept:
    """Decide what follows a command for one of its keys, or is changed in it."""
    cdef int follows = growth_follows(frame, words, row, place)
    if follows == NOTHING_FOLLOWS or not rules.applies(keyspace, COLLECTION_RULE):
        return NOTHING_FOLLOWS
    if row.grows == GROWS_STREAM:
        return _amend_entry(frame, words, &rules.spaces[keyspace], edit)
    return follows


cdef int growth_follows(const char* frame, const Words* words, CommandRow* row, int place) noexcept:
    """Whether a command adds to its key at a place, counted from 0, and for a list at which end."""
    cdef bint second = row.makes == MAKES_SECOND or row.makes == MAKES_CARRIED
    if row.grows == GROWS_NOTHING or place != <int> second:
        return NOTHING_FOLLOWS
    if row.grows == GROWS_HEAD or (row.grows == GROWS_SIDE and words.count > 4
                                   and word_is(frame, words, 4, "LEFT")):
        return TRIM_FOLLOWS | HEAD_GREW
    return TRIM_FOLLOWS


cdef int _amend_entry(const char* frame, const Words* words, KeyspaceRow* space, Edit* edit) noexcept:
    """Put a MAXLEN into an XADD, or cut its own; return what has to follow nevertheless."""
    cdef Py_ssize_t i = 2
    cdef Py_ssize_t count_at
    cdef int64_t most
    cdef bint rough = False
    while i < words.count and word_is(frame, words, i, "NOMKSTREAM"):
        i += 1
    if i + 2 >= words.count:
        return NOTHING_FOLLOWS
    if not word_is(frame, words, i, "MAXLEN"):
        if word_is(frame, words, i, "MINID") or word_is(frame, words, i, "LIMIT"):
            return TRIM_FOLLOWS
        edit_at(edit, 2, 0)
        edit_word(edit, "MAXLEN")
        edit_word(edit, "=" if space.exact else "~")
        edit_number(edit, space.most_items)
        return NOTHING_FOLLOWS
    count_at = i + 1
    if words.items[count_at].size == 1 and frame[words.items[count_at].at] in b"=~":
        rough = frame[words.items[count_at].at] == c"~"
        count_at += 1
    if count_at >= words.count or not word_number(frame, words, count_at, &most) or most < 0:
        return NOTHING_FOLLOWS
    if most > space.most_items:
        edit_at(edit, count_at, 1)
        edit_number(edit, space.most_items)
    return TRIM_FOLLOWS if rough and space.exact else NOTHING_FOLLOWS


cdef Py_ssize_t put_trim(Octets* out, const char* key, Py_ssize_t size, CommandRow* row,
                         KeyspaceRow* space, bint head) except -1:
    """Append the command that cuts a key to what it may hold; return the bytes."""
    cdef int64_t most = space.most_items
    if row.grows == GROWS_ZSET:
        if space.keeps_low:
            return _put_ranks(out, "ZREMRANGEBYRANK", key, size, most, -1)
        return _put_ranks(out, "ZREMRANGEBYRANK", key, size, 0, -most - 1)
    if row.grows == GROWS_STREAM:
        return (put_head(out, 5) + put_word(out, "XTRIM", 5) + put_word(out, key, size)
                + put_word(out, "MAXLEN", 6) + put_word(out, "=" if space.exact else "~", 1)
                + put_number(out, most))
    if row.grows == GROWS_WHOLE:
        return _put_script(out, WHOLE_SCRIPT, key, size, -most if space.keeps_low else most)
    if row.grows == GROWS_SET or row.grows == GROWS_HASH:
        return _put_script(out, SET_SCRIPT if row.grows == GROWS_SET else HASH_SCRIPT, key, size, most)
    # The end that grew holds the newest, and is kept unless the oldest are.
    if head == space.keeps_low:
        return _put_ranks(out, "LTRIM", key, size, -most, -1)
    return _put_ranks(out, "LTRIM", key, size, 0, most - 1)


cdef Py_ssize_t _put_ranks(Octets* out, const char* name, const char* key, Py_ssize_t size,
                           int64_t first, int64_t last) except -1:
    return (put_head(out, 4) + put_word(out, name, strlen(name)) + put_word(out, key, size)
            + put_number(out, first) + put_number(out, last))


cdef Py_ssize_t _put_script(Octets* out, const char* body, const char* key, Py_ssize_t size,
                            int64_t most) except -1:
    return (put_head(out, 5) + put_word(out, "EVAL", 4) + put_word(out, body, strlen(body))
            + put_number(out, 1) + put_word(out, key, size) + put_number(out, most))
