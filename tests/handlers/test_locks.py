"""Locks that PostgreSQL decides."""

from proxy import errors
from proxy.handlers import locks
from tests.handlers.desk import Desk
from tests.replies import pack
from tests.wire.test_scripts import SCRIPT


async def test_none_is_granted_without_a_decision() -> None:
    """Nothing is done to a lock where nobody has decided it."""
    session = Desk().connect().session
    request = session.downstream.receive_data(pack(b"PING"), 0.0)
    assert request is not None
    values = {"event": b"e", "seat": b"s", "path": b"p", "others": [b"x"]}
    assert locks.named(session, request, SCRIPT, values) == errors.DEGRADED
