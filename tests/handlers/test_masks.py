"""What is told of the words of a command, and what stands for the others."""

import pytest

from proxy.commands import COMMANDS, INDEX
from proxy.handlers.masks import MOST_PLACEHOLDER, Command, Told, tell


def told(text: str, keys: tuple[int, ...] = (1,), values: bool = False) -> Told:
    words = text.encode().split(b" ")
    name = words[0].lower()
    if name not in INDEX or COMMANDS[INDEX[name]].path == 4:
        name = b"|".join(words[:2]).lower()
    sizes = [len(word) for word in words]
    command = Command(name if name in INDEX else b"", words, sizes, len(words), keys)
    return tell(command, lambda word: word.decode(), values)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("GET a:1", "GET a:1"),
        ("SET a:1 hello EX 60 NX", "SET a:1 ***** EX 60 NX"),
        ("SET a:1 42", "SET a:1 00"),
        ('SET a:1 {"b":1}', "SET a:1 {     }"),
        ("SET a:1 EX", "SET a:1 **"),
        ("SETEX a:1 60 77", "SETEX a:1 60 00"),
        ("HSET a:1 f 1 g x", "HSET a:1 * 0 * *"),
        ("ZADD a:1 NX 1.5 555", "ZADD a:1 NX *** 000"),
        ("XADD a:1 MAXLEN ~ 1000 * f 7", "XADD a:1 MAXLEN ~ 1000 * * 0"),
        ("EXPIRE a:1 60 GT", "EXPIRE a:1 60 GT"),
        ("LRANGE a:1 0 -1", "LRANGE a:1 0 -1"),
        ("ZRANGE a:1 0 5 BYSCORE LIMIT 10 20", "ZRANGE a:1 0 5 BYSCORE LIMIT 10 20"),
    ],
)
def test_words_that_decide_are_told(sent: str, shown: str) -> None:
    """Names, options and their numbers are told; data leaves its length and kind."""
    assert " ".join(told(sent).words) == shown
    assert told(sent).keys == ["a:1"]


def test_values_where_they_are_wanted() -> None:
    """With values, data is told as it is."""
    assert told("SET a:1 hello EX 60", values=True).words == ["SET", "a:1", "hello", "EX", "60"]


def test_names_that_are_no_keys() -> None:
    """Channels and functions decide as keys do, and are called as keys are."""
    assert told("PUBLISH news:1 text", ()).words == ["PUBLISH", "news:1", "****"]
    assert told("FCALL count 1 a:1 x", (3,)).words == ["FCALL", "count", "1", "a:1", "*"]


@pytest.mark.parametrize(
    "sent",
    ["AUTH app hunter22", "HELLO 3 AUTH app hunter22", "CONFIG SET requirepass hunter22",
     "ACL SETUSER app >hunter22", "hunter22 hunter22"],
)  # fmt: skip
def test_secrets_are_never_told(sent: str) -> None:
    """Of logins, of what administers and of what is unknown not even the length is told."""
    for values in (False, True):
        shown = told(sent, (), values)
        assert "hunter22" not in " ".join(shown.words)
        assert "*" not in " ".join(shown.words)
        assert (shown.lengths, shown.keys) == ({}, [])


def test_long_words_and_many() -> None:
    """A placeholder has a bound, and the true length beside it; words left out are counted."""
    words = [b"SET", b"a", b"v" * 256]
    shown = tell(Command(b"set", words, [3, 1, 5000], 40, (1,)), lambda word: "#")
    assert shown.words == ["SET", "#", "*" * MOST_PLACEHOLDER, "... (37 more arguments)"]
    assert shown.lengths == {"2": 5000}


def test_hostile_words() -> None:
    """Whatever the bytes, a word is printable ASCII of at most 256 characters."""
    raw = bytes(range(256))
    shown = tell(Command(b"get", [raw, raw], [256, 256], 2, ()), lambda word: "#", True)
    assert all(len(word) <= 256 and word.isascii() and word.isprintable() for word in shown.words)
