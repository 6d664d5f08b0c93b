"""What a client asks the server about itself."""

import time

import pytest

from tests.handlers.desk import Desk


async def test_texts_for_people_are_verbatim_in_resp3() -> None:
    """INFO, CLIENT LIST and LOLWUT tell a RESP3 client that they are text."""
    client = Desk().connect()
    client.ask(b"HELLO", b"3")
    for words in (b"INFO", b"CLIENT LIST", b"CLIENT INFO", b"LOLWUT"):
        reply = client.ask(*words.split())
        assert reply[:1] == b"="
        assert b"\r\ntxt:" in reply[:20]


async def test_config_get_takes_patterns() -> None:
    """Each setting that fits one of the patterns is answered once; an unknown one is not."""
    client = Desk().connect()
    client.ask(b"HELLO", b"3")
    found = client.value(b"CONFIG", b"GET", b"maxmem*", b"maxmemory", b"nosuch", b"SAVE")
    assert found == {b"maxmemory": b"0", b"maxmemory-policy": b"allkeys-lfu", b"save": b""}
    found = client.value(b"CONFIG", b"GET", b"*")
    for name in (b"appendonly", b"databases", b"timeout", b"slave-read-only",
                 b"notify-keyspace-events", b"proto-max-bulk-len",
                 b"client-output-buffer-limit"):  # fmt: skip
        assert name in found


async def test_time_is_the_clocks() -> None:
    """TIME gives seconds and microseconds of the wall clock."""
    seconds, microseconds = map(int, Desk().connect().value(b"TIME"))
    assert abs(time.time() - seconds - microseconds / 1e6) < 5


async def test_lastsave_is_the_start() -> None:
    """A proxy saves nothing; it says since when it runs."""
    desk = Desk()
    assert desk.connect().value(b"LASTSAVE") == int(desk.server.started)


async def test_no_modules() -> None:
    """There are no modules, which libraries ask to know whether JSON or search is there."""
    assert Desk().connect().ask(b"MODULE", b"LIST") == b"*0\r\n"


async def test_help_lists_what_is_offered() -> None:
    """HELP of a container names its sub-commands, without those that are refused."""
    lines = Desk().connect().value(b"CLIENT", b"HELP")
    assert b"ID" in lines
    assert b"IMPORT-SOURCE" not in lines


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([b"FOO", b"a", b"b"], b"'FOO', with args beginning with: 'a' 'b' "),
        ([b"F\r\n+OK"], b"'F\\x0d\\x0a+OK', with args beginning with: "),
        ([b"x" * 500, b"y"], b"'" + b"x" * 128 + b"', with args beginning with: 'y' "),
    ],
)
async def test_unknown_commands_are_quoted_safely(words: list[bytes], line: bytes) -> None:
    """The name is escaped and cut: no client can forge a reply with it."""
    assert Desk().connect().ask(*words) == b"-ERR unknown command " + line + b"\r\n"


async def test_a_long_argument_list_is_cut() -> None:
    """As in Redis, arguments are quoted until 128 bytes are full."""
    reply = Desk().connect().ask(b"FOO", *[b"y" * 50] * 20)
    assert len(reply) < 250
