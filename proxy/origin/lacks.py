"""Waiting writes that Redis may lack, or may have had in another order than the journal.

Kept by `behind`, used by its handlers. Such a key is void: at once where it may lack something, and
in both cases when its writes are in PostgreSQL, because another sidecar, which cannot know of them,
may have fetched the row meanwhile.

Always true: nothing is kept in mind of keys of which nothing waits and that nobody is writing to.
Where nobody can read a key in PostgreSQL, what Redis has is all there is, and stays.
"""

from collections.abc import Callable, Iterable

from proxy.origin.records import Place
from proxy.plans import Plan


class Lacks:
    """Those of one sidecar."""

    def __init__(self, holds: Callable[[str, bytes], bool]) -> None:
        """Holds tells of a place whether anything of it waits for PostgreSQL."""
        self._holds = holds
        self._lacking: set[Place] = set()
        self._contended: set[Place] = set()
        self._void: Callable[[bytes], None] = lambda key: None

    def watch(self, void: Callable[[bytes], None]) -> None:
        """Take what makes a key one that Redis does not have, soon."""
        self._void = void

    def note(self, plan: Plan, key: bytes) -> None:
        """Note that Redis may lack what was written to a key."""
        if plan.read is not None:
            if self._holds(plan.name, key):
                self._lacking.add((plan.name, key))
            self._void(key)

    def contended(self, plan: Plan, key: bytes) -> None:
        """Note that Redis may have had writes of a key in another order than the journal."""
        if plan.read is not None:
            self._contended.add((plan.name, key))

    def left(self, plan: Plan, key: bytes) -> None:
        """Hear that nobody writes to a key now; of what was refused nothing is kept in mind."""
        if not self._holds(plan.name, key):
            self._contended.discard((plan.name, key))

    def whole(self, plan: Plan, key: bytes) -> None:
        """Hear that Redis has all that was written to a key."""
        self._lacking.discard((plan.name, key))

    def has(self, place: Place) -> bool:
        """Return whether Redis may lack something of a key."""
        return place in self._lacking

    def flushed(self, places: Iterable[Place]) -> None:
        """Make void what PostgreSQL has been told of and Redis may have otherwise."""
        for place in places:
            if place not in self._lacking and place not in self._contended:
                continue
            waits = self._holds(*place)
            if place in self._lacking or not waits:
                self._void(place[1])
            if not waits:
                self._lacking.discard(place)
                self._contended.discard(place)
