"""Grants of which nobody knows whether they were made, as their answers were lost.

`locks` notes them here. An owner that is one word for everybody is no proof of who asks, so who
holds such a lock is not granted it again; but for who was told that the outcome is unknown.
"""

import time

from proxy.handlers.claims import Claim

# So many locks, of all connections; of too many the oldest is forgotten.
DOUBTED = 1000


class Doubts:
    """Locks that may have been granted to somebody who was told that the outcome is unknown.

    Who asks again with the same owner, on whatever connection, is told once that it holds the lock,
    if it was granted by that very claim.
    """

    def __init__(self) -> None:
        self._claims: dict[bytes, tuple[Claim, float]] = {}  # by key; until when

    def note(self, key: bytes, claim: Claim) -> None:
        """Note that nobody knows whether a claim was granted."""
        self._claims.pop(key, None)
        if len(self._claims) >= DOUBTED:
            self._claims.pop(next(iter(self._claims)))
        self._claims[key] = (claim, time.monotonic() + claim.seconds)

    def taken(self, key: bytes, owner: str) -> str | None:
        """Return in which session an owner may have been granted a lock without being told.

        Nobody else is told so meanwhile: who is granted nothing by it notes the claim again.
        """
        claim, until = self._claims.get(key, (None, 0.0))
        if claim is None or claim.owner != owner or time.monotonic() >= until:
            return None
        del self._claims[key]
        return claim.session
