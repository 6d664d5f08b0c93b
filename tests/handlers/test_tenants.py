"""Whom a client may hear of."""

import hashlib

import pytest

from proxy.config import User
from proxy.handlers.tenants import sees, visible_users
from tests.handlers.desk import Client, Desk

DIGESTS = (hashlib.sha256(b"pw").digest(),)
ROLES = {"app": "default", "other": "default", "boss": "admin"}
USERS = [User(name, DIGESTS, role, True, False) for name, role in ROLES.items()]


def signed_in(desk: Desk, name: bytes) -> Client:
    """Return a client that has logged in as one of `USERS`."""
    client = desk.connect()
    assert client.ask(b"AUTH", name, b"pw") == b"+OK\r\n"
    return client


@pytest.mark.parametrize(("name", "heard"), [("app", ["app"]), ("boss", ["app", "other", "boss"])])
async def test_only_the_admin_sees_others(name: str, heard: list[str]) -> None:
    """The role decides, not the name of the user."""
    client = signed_in(Desk(USERS), name.encode())
    assert [user.name for user in visible_users(client.session)] == heard
    assert sees(client.session, "other") is (name == "boss")
