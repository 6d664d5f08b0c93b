# What a handler is given of a command. A part of downstream.pyx, which includes it.

@cython.freelist(64)
cdef class Request:
    """A command that needs Python. Answered exactly once through `Downstream.answer`."""

    @property
    def arguments(self):
        """Return all words, the name first, in the client's spelling; of a script, its run's."""
        cdef const char* frame = <char*> self.command
        _collect(self.command)
        return [_text(frame, i) for i in range(WORDS.count)]

    @property
    def keys(self):
        """Return the positions of the keys among the arguments; none where that is not certain."""
        if self.row < 0:
            return []
        return find_keys(self.ruleset, self.row, self.command) or []

    @property
    def keys_error(self):
        """Return the line for a command whose keys are not certain."""
        _collect(self.command)
        return _keys_error(self.ruleset, <char*> self.command, self.row)


def find_keys(Ruleset rules not None, int row, bytes command not None):
    """Return the positions of the keys of a canonical frame, or None where they are not certain."""
    if not 0 <= row < len(rules.commands):
        raise ValueError("no such row")
    _collect(command)
    if rules.rows[row].kind == KEYS_NONE:
        return []
    if _find_keys(<char*> command, &rules.rows[row]) not in (0, KEYS_BLOCKING):
        return None
    return [KEYS.items[i].word for i in range(KEYS.count)]
