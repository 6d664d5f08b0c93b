# What a node says of where or when a command can run, and what of it is to be believed.
# A part of upstream.pyx, which includes it.

# Said instead of running it: all of them prove that the command has not run, so it may be sent
# again whatever it is.
cdef list ELSEWHERE = [
    (b"-MOVED ", "moved"),
    (b"-ASK ", "ask"),
    (b"-TRYAGAIN", "tryagain"),
    (b"-CLUSTERDOWN", "unavailable"),
    (b"-LOADING", "unavailable"),
    (b"-MASTERDOWN", "unavailable"),
    (b"-READONLY", "readonly"),
]

# The same as whole lines: what a script makes up or passes on may begin with these words too, and
# proves nothing. Redis names the script at the end of lines that a command inside it ended with.
cdef frozenset WHOLE = frozenset((
    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    b"-CLUSTERDOWN Hash slot not served\r\n",
    b"-CLUSTERDOWN The cluster is down\r\n",
    b"-CLUSTERDOWN The cluster is down and only accepts read commands\r\n",
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-LOADING Valkey is loading the dataset in memory\r\n",
    b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
))


cdef bint _is_nodes_own(Orphan orphan, int slot):
    """Whether an error line says what only the node says, about the slot that was asked for."""
    if orphan.kind == "moved" or orphan.kind == "ask":
        return orphan.redirect_slot == slot
    return orphan.reply in WHOLE


cdef _read_redirect(Orphan orphan):
    """Read "-MOVED 3999 host:port"; what does not parse keeps an empty address."""
    words = orphan.reply.rstrip(b"\r\n").split(b" ")
    if len(words) == 3 and words[1].isdigit() and len(words[1]) <= 5 and int(words[1]) < 16384:
        orphan.redirect_slot = int(words[1])
        orphan.address = words[2].decode("ascii", "replace")
