"""Every error line that a client may get."""

import random

import pytest

from proxy import errors

WORDS = {
    "ERR", "EXECABORT", "NOAUTH", "NOPERM", "NOPROTO", "LOCKOWNER", "WRONGPASS", "CROSSSLOT",
    "CLUSTERDOWN", "TRYAGAIN", "POLICY", "UNBLOCKED", "WRONGTYPE", "PGDOWN", "DEGRADED", "WBFULL",
}  # fmt: skip

LINES = {name: value for name, value in vars(errors).items() if isinstance(value, bytes)}
LINES |= errors.DATA_PLANE._asdict()

# First words, and texts, on which some client library sends a command again by itself.
REPEATED = ("TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "BUSY", "max number")

HOSTILE = [
    b"a\r\n+OK\r\n", b"\x00", b"\xff" * 300, b"'; x", b"\x1b[31m", "ключ".encode(), b"%s %d",
    b"\r\n" * 200, b"",
]  # fmt: skip


def _strict(line: bytes) -> None:
    """Hold a line to be one error reply and nothing else."""
    assert line.startswith(b"-")
    assert line.endswith(b"\r\n")
    assert all(0x20 <= byte <= 0x7E for byte in line[1:-2]), line


@pytest.mark.parametrize("name", sorted(LINES))
def test_a_line_is_one_reply(name: str) -> None:
    """Every line of the table begins with a known word and ends once."""
    _strict(LINES[name])
    assert LINES[name][1:].split()[0].decode() in WORDS


@pytest.mark.parametrize(
    "make",
    [
        lambda text: errors.unknown_command(text, [text, text]),
        lambda text: errors.unknown_subcommand(text, text),
        errors.wrong_arity,
        errors.bad_hello_option,
        errors.bad_client_info,
        errors.unrecognized_option,
        errors.unknown_client_type,
        errors.no_such_user,
        errors.unknown_category,
    ],
)  # fmt: skip
def test_no_client_bytes_break_a_line(make: object) -> None:
    """Names and arguments of any bytes leave one line, of bounded length."""
    assert callable(make)
    random_ = random.Random(1)
    for text in [*HOSTILE, *(random_.randbytes(random_.randrange(300)) for _ in range(500))]:
        line = make(text)
        _strict(line)
        assert len(line) < 700


def test_unknown_command_quotes_as_redis_does() -> None:
    """The text is the one on which clients fall back to an older protocol."""
    assert errors.unknown_command(b"HELLO", [b"3"]) == (
        b"-ERR unknown command 'HELLO', with args beginning with: '3' \r\n"
    )


def test_at_most_128_bytes_of_arguments() -> None:
    """A long argument list is cut where Redis cuts it, escapes counted."""
    line = errors.unknown_command(b"x" * 200, [b"\x00" * 100] * 10)
    name, _, arguments = line.partition(b", with args beginning with: ")
    assert name.count(b"x") == 128
    assert len(arguments.replace(b"'", b"").strip()) <= errors.QUOTED_BYTES


def test_no_library_repeats_an_unknown_outcome() -> None:
    """A write that may have run is reported in words that nobody takes for "try again"."""
    assert errors.UNKNOWN_OUTCOME.startswith(b"-ERR ")
    assert not any(word.encode() in errors.UNKNOWN_OUTCOME for word in REPEATED)


def test_partial_keeps_the_first_word() -> None:
    """The error of a part stays what it is, with the number of parts behind it."""
    assert errors.partial(b"-OOM full.\r\n", 2, 3) == b"-OOM full (2 of 3 parts succeeded)\r\n"


def test_rules_are_named_and_keys_are_not() -> None:
    """A refusal names keyspace and rule; there is no place for the key in it."""
    assert errors.key_refused("seat_lock", "at most 512 bytes") == (
        b"-POLICY key refused by keyspace 'seat_lock': at most 512 bytes\r\n"
    )


def test_exceptions_are_one_tree() -> None:
    """An operator's mistake is caught by one name."""
    for kind in (errors.ConfigError, errors.PolicyError, errors.StartError):
        assert issubclass(kind, errors.SidecacheError)
