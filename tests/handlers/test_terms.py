"""For how long a lock is asked for."""

import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from proxy import errors
from proxy.handlers.terms import LONGEST, bounded, kept_for, time_of
from proxy.wire import rules
from tests.handlers.backed_desk import plan
from tests.handlers.servers import PROGRAMS, Client, program_of, running
from tests.policy.rulebook import Folder


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ("NX", 60.0), ("NX EX 5", 5.0), ("px 1500 nx", 1.5), ("NX PX 1", 0.001),
        ("NX PXAT 1", 0.001),
    ],
)  # fmt: skip
def test_a_time(options: str, seconds: float) -> None:
    """Said in one of four ways, or that of the policy; what is over already is a moment."""
    assert time_of(options.encode().split(), plan()) == seconds
    until = b"%d" % (time.time() + 100)
    found = time_of([b"EXAT", until, b"NX"], plan())
    assert isinstance(found, float)
    assert 98 < found < 101


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("", errors.lock_refused("user", "command")),
        ("XX", errors.lock_refused("user", "command")),
        ("NX KEEPTTL", errors.lock_refused("user", "command")),
        ("NX EX 5 EX 6", errors.lock_refused("user", "command")),
        ("IFEQ x", errors.lock_refused("user", "command")),
        ("EX 5", errors.lock_refused("user", "command")),
        ("NX GET", errors.lock_refused("user", "command")),
        ("NX EX", errors.SYNTAX), ("NX EX 5 PX 5", errors.SYNTAX),
        ("NX XX", errors.SYNTAX), ("NX EX 5 FOO", errors.SYNTAX), ("FOO NX", errors.SYNTAX),
        ("NX KEEPTTL EX 5", errors.SYNTAX), ("NX IFEQ x", errors.SYNTAX), ("IFEQ", errors.SYNTAX),
        ("NX EX 0 FOO", errors.SYNTAX), ("XX EX x", errors.NOT_AN_INTEGER),
        ("NX EX x", errors.NOT_AN_INTEGER), ("NX EX 0", errors.invalid_expire("set")),
        (f"NX EX {round(LONGEST) + 1}", errors.invalid_expire("set")),
    ],
)  # fmt: skip
def test_no_time(options: str, line: bytes) -> None:
    """What takes no lock, or for no time, is an error."""
    assert time_of(options.encode().split(), plan()) == line


def test_a_time_that_is_empty() -> None:
    """An empty word is no number, and not a word that is missing."""
    assert time_of([b"NX", b"EX", b""], plan()) == errors.NOT_AN_INTEGER


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("EXPIRE k 5", 5.0), ("pexpire k 1500", 1.5), ("EXPIRE k -1", -1.0),
        ("EXPIRE k 5 FOO", b"-ERR Unsupported option FOO\r\n"),
        ("EXPIRE k x NX Foo", b"-ERR Unsupported option Foo\r\n"),
        ("EXPIRE k 5 f\r\noo", b"-ERR Unsupported option f\\x0d\\x0aoo\r\n"),
        ("EXPIRE k 5 NX XX", errors.NX_AND_OTHERS), ("EXPIRE k x lt nx", errors.NX_AND_OTHERS),
        ("PEXPIREAT k 5 GT LT", errors.GT_AND_LT),
        ("EXPIRE k x GT", errors.NOT_AN_INTEGER),
        (f"EXPIRE k {round(LONGEST) + 1} GT", errors.invalid_expire("expire")),
        ("EXPIRE k 5 NX NX", errors.lock_refused("user", "command")),
        ("EXPIRE k 5 xx gt", errors.lock_refused("user", "command")),
    ],
)  # fmt: skip
def test_how_long_a_lock_is_kept(words: str, found: float | bytes) -> None:
    """For so many seconds, or what Redis says of words that are wrong; limits are for no lock."""
    assert kept_for(words.encode().split(b" "), plan()) == found


def test_a_lock_is_kept_until_a_date() -> None:
    """A date is so far away as this host's clock says."""
    found = kept_for([b"PEXPIREAT", b"k", b"%d" % ((time.time() + 100) * 1000)], plan())
    assert isinstance(found, float)
    assert 98 < found < 101


@pytest.mark.integration
@pytest.mark.parametrize("server", PROGRAMS, indirect=True)
def test_redis_has_the_same_words(server: Client) -> None:
    """What a server refuses is refused in its words, whatever is wrong as well; nothing else is."""
    options = ["NX", "xx", "GET", "KEEPTTL", "EX 5", "PX x", "EX 0", "PXAT", "FOO", ""]
    limits = ["NX", "xx", "GT", "LT", "FOO", ""]
    commands = [
        *product(["SET k v"], *[options] * 3),
        *product(["EXPIRE k 5", "EXPIRE k x"], *[limits] * 3),
    ]
    server.ask(b"SET", b"k", b"v")
    for parts in commands:
        words = " ".join(parts).encode().split()
        theirs = server.ask_raw(*words)
        ours = time_of(words[3:], plan()) if words[0] == b"SET" else kept_for(words, plan())
        if theirs.startswith(b"-"):
            assert ours == theirs, words
        else:
            assert isinstance(ours, float) or ours.startswith(b"-POLICY "), words


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Client]:
    with running(program_of(request)) as path:
        client = Client(path)
        yield client
        client.close()


def test_the_policy_bounds_it(tmp_path: Path) -> None:
    """At least and at most as long as it says."""
    text = "keyspaces:\n  k: {key: k, kind: lock, ttl: {min: 2s, default: 5s, max: 9s}}\n"
    ruleset = Folder(tmp_path).compile(text)
    assert isinstance(ruleset.keyspaces[0], rules.Keyspace)
    found = [bounded(ruleset, plan(), seconds) for seconds in (1.0, 7.0, 99.0)]
    assert found == [2.0, 7.0, 9.0]
