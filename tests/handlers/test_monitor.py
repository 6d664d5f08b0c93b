"""MONITOR shows what others send, without secrets, and costs nothing when nobody watches."""

import re

from tests.handlers.desk import Desk
from tests.handlers.test_tenants import USERS, signed_in


def lines(text: bytes) -> list[bytes]:
    """Return what monitor lines show, without their times."""
    return re.findall(rb"\+\d+\.\d{6} (\[0 \S+\] .*)\r\n", text)


async def test_commands_are_shown_as_they_are_taken() -> None:
    """Each command of every client is one line with its address and quoted words."""
    desk = Desk()
    watcher, other = desk.connect("10.0.0.1"), desk.connect("10.0.0.2")
    assert watcher.ask(b"MONITOR") == b"+OK\r\n"
    other.send(b"SET", b"a", b'"\x00\n')
    other.send(b"PING")
    desk.settle()
    shown = lines(watcher.take())
    peer = other.session.peer.encode()
    assert shown == [b'[0 %b] "SET" "a" "\\"\\x00\\n"' % peer, b'[0 %b] "PING"' % peer]


async def test_what_others_send_is_theirs() -> None:
    """A user's clients are shown what that user sends; the admin everything."""
    desk = Desk(USERS)
    app, other, boss = (signed_in(desk, name) for name in (b"app", b"other", b"boss"))
    for watcher in (app, boss):
        watcher.ask(b"MONITOR")
    other.send(b"SET", b"secret", b"1")
    signed_in(desk, b"app").send(b"SET", b"mine", b"1")
    desk.settle()
    shown, all_shown = ([line.split(b"] ")[1] for line in lines(c.take())] for c in (app, boss))
    assert shown == [b'"SET" "mine" "1"']
    assert all_shown == [b'"SET" "secret" "1"', b'"SET" "mine" "1"']


async def test_secrets_are_not_shown() -> None:
    """AUTH is not shown at all, nor what stands behind AUTH in HELLO, nor administration."""
    desk = Desk()
    watcher, other = desk.connect(), desk.connect()
    watcher.ask(b"MONITOR")
    other.send(b"AUTH", b"default", b"hunter2")
    other.send(b"HELLO", b"3", b"AUTH", b"default", b"hunter2")
    other.send(b"CONFIG", b"GET", b"*")
    desk.settle()
    shown = watcher.take()
    assert b"hunter2" not in shown
    assert [line.split(b"] ")[1] for line in lines(shown)] == [b'"HELLO" "3" "AUTH" "(redacted)"']


async def test_nobody_watches_any_more() -> None:
    """After RESET, or when the last monitor has gone, nothing is observed."""
    desk = Desk()
    first, second = desk.connect(), desk.connect()
    for client in (first, second):
        client.ask(b"MONITOR")
    first.send(b"RESET")
    assert desk.batch.observer is not None
    second.session.connection_lost(None)
    assert desk.batch.observer is None
