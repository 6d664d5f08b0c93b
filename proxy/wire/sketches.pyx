# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Which commands are looked at closer, and what was seen of their keys.

`Downstream` asks for every command whether it passes, which is a decrement and two comparisons;
everything else here happens once in many commands. Always true:
  * memory is fixed when the rules load: no key, however many there are, adds to it;
  * a key is known by a hash that is keyed per process, and by its name only where that is wanted;
  * counts grow old when `halve` is called; nothing here knows what time it is.
The hot keys are a Space-Saving sketch (Metwally, Agrawal, El Abbadi 2005): a key that is not known
takes the place of the one with the smallest count, and that count is its error.
"""

from libc.math cimport log1p, log
from libc.stdint cimport int16_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from cpython.bytes cimport PyBytes_FromStringAndSize

cdef enum:
    # A hundred are reported. A key with a share of the looks above 1/1024 is certainly here.
    HOT_KEYS = 1024
    INDEX_SIZE = 4096        # a quarter full, so that a search takes one or two steps
    # Of each keyspace, so that one of large values does not hide those of another.
    BIG_KEYS = 16
    # Four pages: what is smaller is no reason for a slow reply.
    LARGE_BYTES = 16 * 1024
    NAME_BYTES = 128         # kept of a key's name

# More than there will ever be, of commands and of bytes.
cdef int64_t NEVER = <int64_t> 1 << 62


cdef inline uint64_t rotated(uint64_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (64 - bits))


cdef inline void sip_round(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[1] = rotated(v[1], 13) ^ v[0]
    v[0] = rotated(v[0], 32)
    v[2] += v[3]
    v[3] = rotated(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = rotated(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = rotated(v[1], 17) ^ v[2]
    v[2] = rotated(v[2], 32)


cdef uint64_t siphash(const uint64_t* secret, const uint8_t* data, Py_ssize_t size) noexcept nogil:
    """SipHash-2-4 (Aumasson, Bernstein 2012): without the secret nobody finds two keys of one hash."""
    cdef uint64_t v[4]
    cdef uint64_t word
    cdef Py_ssize_t at = 0
    cdef int i
    v[0] = secret[0] ^ <uint64_t> 0x736F6D6570736575
    v[1] = secret[1] ^ <uint64_t> 0x646F72616E646F6D
    v[2] = secret[0] ^ <uint64_t> 0x6C7967656E657261
    v[3] = secret[1] ^ <uint64_t> 0x7465646279746573
    while size - at >= 8:
        memcpy(&word, data + at, 8)
        v[3] ^= word
        sip_round(v)
        sip_round(v)
        v[0] ^= word
        at += 8
    word = <uint64_t> size << 56
    for i in range(<int> (size - at)):
        word |= <uint64_t> data[at + i] << (8 * i)
    v[3] ^= word
    sip_round(v)
    sip_round(v)
    v[0] ^= word
    v[2] ^= 0xFF
    for i in range(4):
        sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef class Trace:
    """One command that is written about, from its request to the write of its reply."""


cdef class Sketches:
    """What is looked at, and the keys that were."""

    def __cinit__(self, bytes secret not None, int keyspaces=0, bint plain=False):
        if len(secret) != 16:
            raise ValueError("a secret has 16 bytes")
        memcpy(self.secret, <char*> secret, 16)
        self.keyspaces = keyspaces
        self.plain = plain
        self.state = siphash(self.secret, NULL, 0) | 1
        self.hot = <HotKey*> calloc(HOT_KEYS, sizeof(HotKey))
        self.heap = <int16_t*> calloc(HOT_KEYS, sizeof(int16_t))
        self.index = <int16_t*> calloc(INDEX_SIZE, sizeof(int16_t))
        self.big = <BigKey*> calloc((keyspaces + 1) * BIG_KEYS, sizeof(BigKey))
        self.hot_names = <uint8_t*> calloc(HOT_KEYS * NAME_BYTES if plain else 1, 1)
        self.big_names = <uint8_t*> calloc((keyspaces + 1) * BIG_KEYS * NAME_BYTES if plain else 1, 1)
        if (self.hot == NULL or self.heap == NULL or self.index == NULL or self.big == NULL
                or self.hot_names == NULL or self.big_names == NULL):
            raise MemoryError()
        memset(self.index, 0xFF, INDEX_SIZE * sizeof(int16_t))
        self.large = NEVER
        self.look(0.0, 0.0)

    def __dealloc__(self):
        free(self.hot)
        free(self.heap)
        free(self.index)
        free(self.big)
        free(self.hot_names)
        free(self.big_names)

    @property
    def memory(self):
        """Return the bytes of all tables."""
        cdef Py_ssize_t big = (self.keyspaces + 1) * BIG_KEYS
        cdef Py_ssize_t names = (HOT_KEYS + big) * NAME_BYTES if self.plain else 2
        return (HOT_KEYS * (sizeof(HotKey) + sizeof(int16_t)) + INDEX_SIZE * sizeof(int16_t)
                + big * sizeof(BigKey) + names)

    # What is looked at.

    def look(self, double sampled, double counted):
        """Write about a share of the commands, and count the keys of a share."""
        if not (0.0 <= sampled <= 1.0 and 0.0 <= counted <= 1.0):
            raise ValueError("a share is between 0 and 1")
        self.sampled_share = sampled
        self.counted_share = counted
        self.large = LARGE_BYTES if counted > 0.0 else NEVER
        self.to_sample = self._skip(sampled)
        self.to_count = self._skip(counted)
        self.left = self.drawn = min(self.to_sample, self.to_count)

    @property
    def shares(self):
        return self.sampled_share, self.counted_share

    cdef int64_t _skip(self, double share) noexcept:
        """Draw how many commands on the next one is that a share of all is taken of.

        Drawn and not counted off: clients repeat themselves, and every thousandth command of one
        could be the same for ever. The distances of independent choices are geometric.
        """
        cdef uint64_t x = self.state
        if share <= 0.0:
            return NEVER
        if share >= 1.0:
            return 1
        x ^= x >> 12  # xorshift64*
        x ^= x << 25
        x ^= x >> 27
        self.state = x
        # 53 bits, in (0, 1].
        return 1 + <int64_t> (log((((x * <uint64_t> 0x2545F4914F6CDD1D) >> 11) + 1) / 9007199254740992.0)
                              / log1p(-share))

    cdef int due(self) noexcept:
        """Return what the command at hand is due for, and draw when the next one is."""
        cdef int found = 0
        if self.left > 0:
            return 0
        self.to_sample -= self.drawn
        self.to_count -= self.drawn
        if self.to_sample <= 0:
            found |= SAMPLED
            self.to_sample = self._skip(self.sampled_share)
        if self.to_count <= 0:
            found |= COUNTED
            self.to_count = self._skip(self.counted_share)
        self.left = self.drawn = min(self.to_sample, self.to_count)
        return found

    def name_hash(self, bytes key not None):
        """Return the hash by which a key is known in this process."""
        return siphash(self.secret, <const uint8_t*> <char*> key, len(key))

    # Hot keys.

    def add(self, bytes key not None, int keyspace):
        """Count one look at a key."""
        self.count(<const uint8_t*> <char*> key, len(key), keyspace)

    cdef int count(self, const uint8_t* key, Py_ssize_t size, int keyspace) except -1:
        cdef uint64_t hash = siphash(self.secret, key, size)
        cdef int entry = self._find(hash)
        cdef HotKey* hot
        self.looks += 1
        if entry >= 0:
            self.hot[entry].count += 1
            self._sink(self.hot[entry].place)
            return 0
        if self.used < HOT_KEYS:
            entry = self.used
            self.used += 1
            hot = &self.hot[entry]
            self._put(entry, entry)
            hot.count = hot.error = 0
        else:
            entry = self.heap[0]
            hot = &self.hot[entry]
            self._leave(hot.hash)
            hot.error = hot.count
        hot.hash = hash
        hot.count += 1
        hot.keyspace = keyspace
        if self.plain:
            hot.size = min(size, NAME_BYTES)
            memcpy(self.hot_names + entry * NAME_BYTES, key, hot.size)
        self._enter(entry)
        self._rise(hot.place)
        self._sink(hot.place)
        return 0

    cdef int _find(self, uint64_t hash) noexcept:
        cdef int at = <int> (hash & (INDEX_SIZE - 1))
        while self.index[at] >= 0:
            if self.hot[self.index[at]].hash == hash:
                return self.index[at]
            at = (at + 1) & (INDEX_SIZE - 1)
        return -1

    cdef void _enter(self, int entry) noexcept:
        cdef int at = <int> (self.hot[entry].hash & (INDEX_SIZE - 1))
        while self.index[at] >= 0:
            at = (at + 1) & (INDEX_SIZE - 1)
        self.index[at] = entry

    cdef void _leave(self, uint64_t hash) noexcept:
        """Take a hash out of the index, and close the gap for those that stepped over its place."""
        cdef int at = <int> (hash & (INDEX_SIZE - 1))
        cdef int behind, home
        while self.index[at] >= 0 and self.hot[self.index[at]].hash != hash:
            at = (at + 1) & (INDEX_SIZE - 1)
        behind = at
        while True:
            behind = (behind + 1) & (INDEX_SIZE - 1)
            if self.index[behind] < 0:
                break
            home = <int> (self.hot[self.index[behind]].hash & (INDEX_SIZE - 1))
            if ((behind - home) & (INDEX_SIZE - 1)) >= ((behind - at) & (INDEX_SIZE - 1)):
                self.index[at] = self.index[behind]
                at = behind
        self.index[at] = -1

    cdef void _put(self, int place, int entry) noexcept:
        self.heap[place] = entry
        self.hot[entry].place = place

    cdef void _sink(self, int place) noexcept:
        """Move an entry away from the root while another is smaller."""
        cdef int entry = self.heap[place]
        cdef double count = self.hot[entry].count
        cdef int child
        while True:
            child = 2 * place + 1
            if child >= self.used:
                break
            if (child + 1 < self.used
                    and self.hot[self.heap[child + 1]].count < self.hot[self.heap[child]].count):
                child += 1
            if self.hot[self.heap[child]].count >= count:
                break
            self._put(place, self.heap[child])
            place = child
        self._put(place, entry)

    cdef void _rise(self, int place) noexcept:
        cdef int entry = self.heap[place]
        cdef double count = self.hot[entry].count
        cdef int parent
        while place > 0:
            parent = (place - 1) // 2
            if self.hot[self.heap[parent]].count <= count:
                break
            self._put(place, self.heap[parent])
            place = parent
        self._put(place, entry)

    def halve(self):
        """Let what was seen so far count half."""
        cdef int i
        for i in range(self.used):
            self.hot[i].count *= 0.5
            self.hot[i].error *= 0.5

    def hot_keys(self, int most):
        """Return (hash, keyspace, name or None, looks, error of the looks) of the hottest."""
        cdef int i
        found = []
        for i in range(self.used):
            found.append((self.hot[i].count, self.hot[i].hash, i))
        found.sort(reverse=True)
        return [
            (hash, self.hot[i].keyspace,
             PyBytes_FromStringAndSize(<char*> self.hot_names + i * NAME_BYTES, self.hot[i].size)
             if self.plain else None,
             count, self.hot[i].error)
            for count, hash, i in found[:most]
        ]

    # Big keys.

    def see(self, bytes key not None, int keyspace, int64_t size, bint replied, double now):
        """Hear how large a request or a reply about a key was."""
        self.measure(<const uint8_t*> <char*> key, len(key), keyspace, size, replied, now)

    cdef int measure(self, const uint8_t* key, Py_ssize_t size, int keyspace, int64_t bytes,
                     bint replied, double now) except -1:
        cdef uint64_t hash
        cdef BigKey* group
        cdef BigKey* big
        cdef int i
        cdef int smallest = 0
        # A command that was judged before a reload may have the number of a keyspace that is gone.
        cdef int first = (keyspace + 1 if -1 <= keyspace < self.keyspaces else 0) * BIG_KEYS
        group = self.big + first
        hash = siphash(self.secret, key, size)
        for i in range(BIG_KEYS):
            if group[i].bytes and group[i].hash == hash:
                smallest = i
                break
            if group[i].bytes < group[smallest].bytes:
                smallest = i
        big = &group[smallest]
        if bytes <= big.bytes:
            return 0
        big.hash = hash
        big.bytes = bytes
        big.seen = now
        big.replied = replied
        if self.plain:
            big.size = min(size, NAME_BYTES)
            memcpy(self.big_names + (first + smallest) * NAME_BYTES, key, big.size)
        return 0

    def big_keys(self):
        """Return (hash, keyspace, name or None, bytes, of a reply, when) of all, largest first."""
        cdef int i
        found = []
        for i in range((self.keyspaces + 1) * BIG_KEYS):
            if self.big[i].bytes:
                found.append((
                    self.big[i].hash, i // BIG_KEYS - 1,
                    PyBytes_FromStringAndSize(<char*> self.big_names + i * NAME_BYTES, self.big[i].size)
                    if self.plain else None,
                    self.big[i].bytes, self.big[i].replied != 0, self.big[i].seen,
                ))
        found.sort(key=lambda row: -row[3])
        return found

    # Other rules.

    def adopt(self, object moves, int keyspaces):
        """Follow rules that are replaced: moves has the new number of each keyspace, -1 for none."""
        cdef list places = list(moves)
        cdef BigKey* big = <BigKey*> calloc((keyspaces + 1) * BIG_KEYS, sizeof(BigKey))
        cdef uint8_t* names = <uint8_t*> calloc(
            (keyspaces + 1) * BIG_KEYS * NAME_BYTES if self.plain else 1, 1)
        cdef int i, old, new
        if big == NULL or names == NULL:
            free(big)
            free(names)
            raise MemoryError()
        for old in range(-1, min(self.keyspaces, <int> len(places))):
            new = places[old] if old >= 0 else -1
            if not -1 <= new < keyspaces or (old >= 0 and new < 0):
                continue
            memcpy(big + (new + 1) * BIG_KEYS, self.big + (old + 1) * BIG_KEYS,
                   BIG_KEYS * sizeof(BigKey))
            if self.plain:
                memcpy(names + (new + 1) * BIG_KEYS * NAME_BYTES,
                       self.big_names + (old + 1) * BIG_KEYS * NAME_BYTES, BIG_KEYS * NAME_BYTES)
        for i in range(self.used):
            old = self.hot[i].keyspace
            self.hot[i].keyspace = places[old] if 0 <= old < len(places) else -1
        free(self.big)
        free(self.big_names)
        self.big = big
        self.big_names = names
        self.keyspaces = keyspaces
