"""What a connection is known to hold."""

from proxy.handlers.held import HELD, Held, forget, known, remember
from tests.handlers.desk import Desk


async def test_the_oldest_of_too_many_is_forgotten() -> None:
    """A connection is known to hold a bounded number of locks, the latest ones."""
    session = Desk().connect().session
    for number in range(HELD + 1):
        remember(session, b"%d" % number, "me", number)
    held = session.holdings["locks"]
    assert isinstance(held, Held)
    assert len(held.grants) == HELD
    assert b"0" not in held.grants
    assert known(session, b"1") == ("me", 1)
    assert known(session, b"0") is None
    forget(session, b"1")
    forget(session, b"never held")
    assert held.grants[b"2"] == ("me", 2)
    assert len(held.grants) == HELD - 1
    held.release()
    assert not held.grants
