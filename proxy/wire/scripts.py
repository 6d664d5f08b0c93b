"""What runs when a command is sent that a script of the policies offers.

The compiler makes a `Script` for the row of such a command. The data plane puts the command into
the words of its run, a handler sends that: this is no fast path, so it is plain Python.

Always true: a key is made of arguments alone, and no argument is more than its part of it.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Filled(NamedTuple):
    """The place of an argument in the name of a key."""

    argument: int  # which one, from 0
    whole: bool  # may have colons: it stands for all that follows


class Script(NamedTuple):
    """What runs when a command is sent that a script offers."""

    digest: bytes  # SHA1 in hexadecimal, lower case
    body: bytes
    keys: tuple[tuple[bytes | Filled, ...], ...]
    arguments: tuple[str, ...]
    more: str | None  # what further arguments are called, None where there may be none
    reads: bool  # nodes see to it that it writes nothing
    mapped: bool  # its flat array is a map under RESP3
    lock: str | None  # what it does to a lock of PostgreSQL: "acquire" "extend" ...
    colon_error: bytes  # for an argument that would be more than its part of a key
    keys_error: bytes  # for a run of its body with other keys than its arguments say

    @property
    def command(self) -> bytes:
        """Return the command that runs it by its digest."""
        return b"EVALSHA_RO" if self.reads else b"EVALSHA"

    def run_of(self, arguments: Sequence[bytes]) -> list[bytes] | None:
        """Return digest, number of keys, keys and arguments; None where one has a colon too many.

        The number of arguments is that of the command's row.
        """
        keys = []
        for template in self.keys:
            parts = []
            for part in template:
                if isinstance(part, bytes):
                    parts.append(part)
                    continue
                argument = arguments[part.argument]
                if not part.whole and (not argument or b":" in argument):
                    return None
                parts.append(argument)
            keys.append(b"".join(parts))
        return [self.digest, b"%d" % len(keys), *keys, *arguments]


def run_of(script: Script | None, words: Sequence[bytes]) -> Sequence[bytes]:
    """Return the words among which the keys of a command stand: of a script, those of its run.

    Words of a script that have too many colons are returned as they are.
    """
    run = None if script is None else script.run_of(words[1:])
    return words if run is None else [words[0], *run]
