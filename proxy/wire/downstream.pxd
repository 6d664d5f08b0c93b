# cython: language_level=3
from libc.stdint cimport int64_t, uint8_t, uint64_t

from proxy.wire.bounds cimport ArgumentBounds
from proxy.wire.limits cimport Rate
from proxy.wire.frames cimport Bounds, Octets, Progress
from proxy.wire.patterns cimport Match, Patterns
from proxy.wire.sketches cimport Trace
from proxy.wire.tables cimport CommandRow, Location, Router, Ruleset, SlotMap
from proxy.wire.upstream cimport Batch, Pending, Sink, Upstream


cdef struct KeyPlace:
    # One key of the command being judged: which word, and where its hash tag goes.
    Py_ssize_t word
    int tag                 # NO_TAG, LITERAL_TAG, or: the bytes at..end are the tag
    int keyspace
    int duties              # rules.Duty, of the command in the key's keyspace
    Py_ssize_t at
    Py_ssize_t end
    int follows             # what goes behind the command for this key, as in times.pxd


cdef struct Span:
    # Words of the command being judged: every step from first up to end.
    Py_ssize_t first
    Py_ssize_t step
    Py_ssize_t end


cdef class Request:
    cdef readonly bytes command
    cdef readonly bytes name
    cdef readonly int row
    cdef readonly double received
    cdef readonly Location location
    cdef readonly bytes routed
    cdef readonly list followers
    cdef readonly int reason       # rules.Reason
    cdef readonly bytes reply      # what was said of a look-up, where that is not its answer
    cdef readonly int64_t left_ms  # what the key of a look-up has left; -3 where nobody said
    cdef readonly Ruleset ruleset  # by which it was judged
    cdef readonly bytes refusal    # why it is refused, of an EXEC that ends what it would have run
    cdef bint holds                # its client waits for the answer
    cdef Pending pending


cdef class Downstream(Sink):
    cdef public object owner
    cdef public int protocol
    cdef readonly object role_name
    cdef readonly int role         # index into the ruleset's roles, -1 for a stranger
    cdef public bint paused        # the client does not read what it is sent
    cdef public bint capture       # what would be forwarded becomes a Request
    cdef public bint spoiled       # a command was refused while capture was on, or rules are new
    cdef public int default_cluster  # of keys that no rule names; -1 is that of the rules
    cdef public bint serial        # a command waits until the one before it is answered
    cdef public int silence        # SPOKEN, SILENT or SILENT_ONCE
    cdef readonly int lane
    cdef public bytes user         # who is charged by limits: its name,
    cdef public bytes address      # and the address that it came from
    cdef tuple rates               # limits of its role
    cdef int rounds                # how often the next command has waited for a limit
    cdef readonly int last_row     # of the command that was let through last, -1 for none
    cdef readonly int pending
    cdef readonly uint64_t sent    # commands given to nodes
    cdef uint64_t written          # a bit for each cluster that writes go to
    cdef readonly int following    # commands of ours behind the client's that are not answered
    cdef readonly bint blocked     # parsing waits
    cdef readonly bint closing     # no further command is taken
    cdef readonly Ruleset ruleset  # by which all that is under way was judged
    cdef Router router
    cdef SlotMap slots
    cdef Batch batch
    cdef Request found
    cdef bytes rights
    cdef const uint8_t* allowed
    cdef bytes named               # rules.Role.keyspaces
    cdef const uint8_t* reach      # the same, or NULL: all
    cdef Patterns matcher           # of the patterns of keys, or None: all
    cdef Py_ssize_t key_bytes
    cdef ArgumentBounds limits     # of arguments, or None
    cdef readonly bint passing     # the rest of a request that is refused already is passed over
    cdef bint awake                # in the batch's list already
    cdef bint must_drain           # parsing waits until nothing is pending
    cdef int held
    cdef Pending head
    cdef Pending tail
    cdef Octets input
    cdef Octets output
    cdef Progress progress
    cdef Bounds bounds
    cdef Py_ssize_t inline_bytes
    cdef double reply_estimate
    cdef Py_ssize_t request_bytes
    cdef readonly Py_ssize_t waiting_bytes  # of replies behind one that is missing, or in parts
    cdef list deferred             # Requests that came to be after their commands were taken
    cdef list traces               # of commands whose replies are about to be written
    cdef int empty_frames
    cdef double empty_since
    cdef void note_write(self, int cluster) noexcept
    cdef bint _may_go_on(self) noexcept
    cdef int _window(self) noexcept
    cdef bint _is_stale(self) noexcept
    cdef Py_ssize_t parse(self, const char* data, Py_ssize_t size, double now) except -1
