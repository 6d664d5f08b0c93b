"""Where the keys are, against COMMAND GETKEYS of real servers."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from proxy import wire
from proxy.commands import COMMANDS, INDEX, Row
from proxy.keys import find_keys
from proxy.wire.rules import KeyKind
from tests.handlers.desk import ruleset
from tests.handlers.servers import PROGRAMS, Client, program_of, running

VECTORS = 24_000  # per server; they take about two seconds

# Refused commands of which GETKEYS cannot be asked, or of which the range is no key.
NOT_COMPARED = {
    b"migrate",  # names keys behind KEYS
    b"clusterscan",  # its "key" is a cursor
    b"spublish", b"ssubscribe", b"sunsubscribe",  # channels, which GETKEYS does not show
}  # fmt: skip

# GETKEYS calls PFMERGE without a source invalid, but the command is carried out.
ACCEPTED_ALONE = [b"pfmerge", b"k1"]

# A node that is older than a looser arity refuses by it, whatever the keys are.
TOO_MANY_WORDS = "Invalid number of arguments"

NUMBERS = [b"0", b"1", b"2", b"3", b"-1", b"02", b"2x", b" 2", b"+1", b"99999999999", b"",
           b"4294967297", b"18446744073709551617"]  # fmt: skip
OPTIONS = [b"STORE", b"STOREDIST", b"BY", b"GET", b"LIMIT", b"COUNT", b"BLOCK", b"GROUP", b"NOACK",
           b"STREAMS", b"ASC", b"ALPHA", b"WITHSCORES", b"WITHDIST", b"store", b"by", b"streams",
           b"Block", b"km", b"#", b"nosort", b"*"]  # fmt: skip


def _words(row: Row, random_: random.Random) -> list[bytes]:
    """Return an argument vector for a row, mostly nearly right."""
    container, bar, word = row.name.partition(b"|")
    words = [container, word] if bar else [container]
    size = max(len(words), abs(row.arity) + random_.choice([-1, 0, 0, 0, 1, 1, 2, 3, 4, 5]))
    while len(words) < size:
        dice = random_.random()
        if dice < 0.5 or row.keys.kind is KeyKind.RANGE:
            words.append(b"k%d" % len(words))
        elif dice < 0.65:
            words.append(random_.choice(NUMBERS))
        else:
            words.append(random_.choice(OPTIONS))
    if row.keys.kind is KeyKind.NUMKEYS and random_.random() < 0.9 and size > row.keys.first:
        words[row.keys.first] = random_.choice(NUMBERS)
    if row.keys.kind is KeyKind.STREAMS and random_.random() < 0.9:
        words[1:1] = random_.choice(
            [[b"STREAMS"], [b"COUNT", b"2", b"STREAMS"], [b"GROUP", b"g", b"c", b"STREAMS"],
             [b"GROUP", b"streams", b"c", b"NOACK", b"streams"], [b"BLOCK", b"0", b"STREAMS"],
             [b"COUNT", b"STREAMS", b"STREAMS"]]
        )  # fmt: skip
    return words


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> Path:
    return program_of(request)


@pytest.mark.integration
def test_keys_are_those_that_the_server_sees(program: Path) -> None:
    """Of 24,000 argument vectors, each is seen alike or refused by us: never other keys."""
    compare(program, VECTORS, 20260101)


def compare(program: Path, count: int, seed: int) -> None:
    """Ask a server and both our finders for the keys of generated argument vectors."""
    random_ = random.Random(seed)
    rules = ruleset()
    with running(program) as path:
        client = Client(path)
        rows = _asked(client)
        # Half of the vectors go to the rows that need a parser.
        movable = [row for row in rows if row.keys.kind is not KeyKind.RANGE]
        vectors = [
            (row, _words(row, random_))
            for _ in range(count // 2)
            for row in (random_.choice(rows), random_.choice(movable))
        ]
        asked = [(b"COMMAND", b"GETKEYS", *words) for _, words in vectors]
        theirs = client.ask_all(asked)
        client.close()
    accepted: dict[bytes, int] = dict.fromkeys((row.name for row in rows), 0)
    wrong = []
    for (row, words), reply in zip(vectors, theirs, strict=True):
        positions = find_keys(row, words)
        if row.arity_fits(len(words)):
            routed = wire.find_keys(rules, INDEX[row.name], wire.pack(words))
            # Routing also refuses what is no pair, and counts of zero, which only scripts may have.
            if routed != positions and routed is not None:
                wrong.append((words, positions, routed))
        if positions is None:
            continue
        accepted[row.name] += 1
        if TOO_MANY_WORDS in str(reply) or words == ACCEPTED_ALONE:
            continue
        if not isinstance(reply, list) or sorted(reply) != sorted(words[p] for p in positions):
            wrong.append((words, positions, reply))
    assert wrong == []
    assert [name for name, number in accepted.items() if number == 0] == []
    # Refusing everything would agree as well.
    assert sum(accepted.values()) > count * 0.35


def _asked(client: Client) -> list[Row]:
    """Return the rows with keys that a server knows and can be asked about."""
    listed = client.ask(b"COMMAND", b"LIST")
    assert isinstance(listed, list)
    return [
        row
        for row in COMMANDS
        if row.keys.kind is not KeyKind.NONE
        and row.name not in NOT_COMPARED
        and row.container in listed
    ]


@pytest.mark.parametrize(
    ("command", "positions"),
    [
        ("SORT a BY store STORE b", [1, 5]),
        ("SORT a BY x GET store", [1]),
        ("SORT a STORE by STORE c", None),
        ("SORT_RO a STORE b", None),
        ("SORT a STORE", None),
        ("GEORADIUS k 1 2 3 m COUNT store STORE d", None),
        ("GEORADIUS k 1 2 3 m STORE a STOREDIST b", None),
        ("GEORADIUS k 1 2 3 m STORE count", [1, 7]),
        ("SORT a STORE b STORE c", None),
        ("XREAD GROUP g c STREAMS a >", None),
        ("GEORADIUS k 1 2 3 m STORE d", [1, 7]),
        ("GEORADIUSBYMEMBER k m 3 km STOREDIST d COUNT 2", [1, 6]),
        ("XREAD COUNT 2 STREAMS a b 0 0", [4, 5]),
        ("XREAD STREAMS a b 0", None),
        ("XREADGROUP GROUP streams c STREAMS a >", [5]),
        ("ZUNIONSTORE d 2 a b", [1, 3, 4]),
        ("ZUNION 3 a b", None),
        ("ZUNION 99999999999999999999 a", None),
        ("EVAL x 0", []),
        ("MSET a 1 b 2", [1, 3]),
        ("BLPOP a b 0", [1, 2]),
        ("GET a b", None),
    ],
)
def test_keys_of_the_cases_that_others_got_wrong(
    command: str, positions: Sequence[int] | None
) -> None:
    """Options that spell other options, counts that overflow, halves that do not match."""
    words = [word.encode() for word in command.split()]
    assert find_keys(COMMANDS[INDEX[words[0].lower()]], words) == positions
