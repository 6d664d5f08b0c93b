"""Cursors of SCAN: what each stands for, kept for as long as its scan is under way.

A cursor is a number below 2**53, which every client library can hold: the number of the scan, drawn
at random, and that of the page. It says nothing of nodes: their own cursors may need all 64 bits.

Always true: a cursor is good for the user that got it and for the same MATCH and TYPE, and again
after an error; one that is not known, or was forgotten, is an error and never another place; the
table holds a bounded number of scans per user, and forgets the one that was not used for longest.
"""

import asyncio
import secrets
from collections import OrderedDict
from dataclasses import dataclass

# Scans that one user may have under way. Each takes up to 5 KB, most of it the slots that are
# covered already; one that is left unfinished stays until its time is over.
SCANS_PER_USER = 1024
FORGOTTEN_AFTER = 600.0  # seconds without a page

# Lists of all keys that are made at one time, each of up to 16 MB; others wait for their turn.
LISTS_AT_ONCE = 4

PAGE_BITS = 13
SCAN_BITS = 40
_PAGE_MASK = (1 << PAGE_BITS) - 1


@dataclass(frozen=True)
class Visit:
    """A node whose keys are being read."""

    at: int  # a slot that leads there
    node: bytes
    slots: int  # those that it is visited for
    cursor: bytes


@dataclass(frozen=True)
class Position:
    """Where a walk stands. None of it changes, so that a page can be asked for twice."""

    clusters: tuple[int, ...]  # still to be walked, the first one under way
    covered: int = 0
    visit: Visit | None = None
    following: int = -1  # a slot of the node to be visited next
    arriving: int = 0  # slots that are on their way to it
    attempts: int = 0  # in a row, that led nowhere


@dataclass
class Scan:
    """One scan under way: where its last two pages begin, since a client may ask again."""

    question: tuple[bytes, ...]
    pages: dict[int, Position]
    used: float


class Scans:
    """All scans under way, by user and number, and room for lists of all keys."""

    def __init__(self) -> None:
        self.lists = asyncio.Semaphore(LISTS_AT_ONCE)
        self._users: dict[str, OrderedDict[int, Scan]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._users.values()))

    def _of(self, user: str) -> OrderedDict[int, Scan]:
        return self._users.setdefault(user, OrderedDict())

    def find(
        self, user: str, cursor: int, question: tuple[bytes, ...], now: float
    ) -> Position | None:
        """Return what a cursor stands for, or None."""
        scan = self._of(user).get(cursor >> PAGE_BITS)
        if scan is None or scan.question != question or now - scan.used > FORGOTTEN_AFTER:
            return None
        return scan.pages.get(cursor & _PAGE_MASK)

    def begin(self, user: str, question: tuple[bytes, ...], position: Position, now: float) -> int:
        """Note the second page of a new scan; return its cursor."""
        scans = self._of(user)
        while scans and (
            len(scans) >= SCANS_PER_USER or now - next(iter(scans.values())).used > FORGOTTEN_AFTER
        ):
            scans.popitem(last=False)
        number = 1 + secrets.randbelow((1 << SCAN_BITS) - 1)
        scans[number] = Scan(question, {1: position}, now)
        return number << PAGE_BITS | 1

    def turn(self, user: str, cursor: int, position: Position | None, now: float) -> int:
        """Note what comes behind the page of a cursor; return the next cursor, 0 at the end."""
        scans = self._of(user)
        number, page = cursor >> PAGE_BITS, cursor & _PAGE_MASK
        scan = scans.get(number)
        if scan is None:
            return 0 if position is None else cursor
        scan.used = now
        scans.move_to_end(number)
        if position is None:
            # The last page may be asked for again, but this scan goes before any other.
            scans.move_to_end(number, last=False)
            return 0
        following = (page + 1) & _PAGE_MASK
        scan.pages = {
            **{known: begins for known, begins in scan.pages.items() if known == page},
            following: position,
        }
        return number << PAGE_BITS | following
