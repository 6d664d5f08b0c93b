"""Locks that PostgreSQL decides: what the scripts of policies with `lock:` do to them."""

from collections.abc import Awaitable, Mapping

from proxy import errors, wire
from proxy.handlers import Session
from proxy.wire.scripts import Script


def named(
    session: Session,
    request: wire.Request,
    script: Script,
    values: Mapping[str, bytes | list[bytes]],
) -> bytes | Awaitable[bytes]:
    """Answer a script that says what is done to the lock of its first key.

    The values are its arguments by name, and under `script.more` the list of further ones.
    """
    return errors.DEGRADED
