"""Words for commands: which rows of the command table they mean."""

import pytest

from proxy.commands import INDEX, ROWS
from proxy.policy.blocks import CommandRights
from tests.policy.rulebook import VOCABULARY


def allowed(**rights: tuple[str, ...]) -> set[bytes]:
    flags = VOCABULARY.allowed(CommandRights(**rights))  # type: ignore[arg-type]
    return {row.name for row, flag in zip(ROWS, flags, strict=True) if flag}


def test_words() -> None:
    """A name, a container with all it holds, a sub-command, a category and @all are words."""
    assert VOCABULARY.commands("get") == VOCABULARY.commands(" GET ") == {INDEX[b"get"]}
    assert VOCABULARY.commands("CONFIG set") == VOCABULARY.commands("config|SET")
    names = {ROWS[i].name for i in VOCABULARY.commands("CONFIG")}
    assert {b"config", b"config|get", b"config|set"} <= names
    assert INDEX[b"flushall"] in VOCABULARY.commands("@dangerous")
    assert VOCABULARY.commands("@all") == set(range(len(ROWS)))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("GETT", 'no command of Redis that is known here; did you mean "get"?'),
        ("CONFIG SETT", 'did you mean "config set"?'),
        ("@writes", 'no category of Redis that is known here; did you mean "@write"?'),
        ("", "no command"),
        ("x" * 500, "no command"),
    ],
)
def test_unknown_words(word: str, told: str) -> None:
    """A word that means nothing is told, with the one that was probably meant."""
    with pytest.raises(ValueError, match="known here") as refused:
        VOCABULARY.commands(word)
    assert told in str(refused.value)


def test_everything_unless_said_otherwise() -> None:
    """Without lists every row may be sent."""
    assert allowed() == {row.name for row in ROWS}


def test_denied_beats_allowed() -> None:
    """What is denied stays denied, whatever is allowed."""
    assert b"get" not in allowed(allow=("@read",), deny=("GET",))
    assert b"set" not in allowed(allow=("@read",))


def test_a_container_is_open_while_a_part_of_it_is() -> None:
    """CONFIG GET alone keeps CONFIG as the way to it; denied CONFIG closes both."""
    names = allowed(deny=("CONFIG SET",))
    assert b"config" in names
    assert b"config|set" not in names
    assert not {name for name in allowed(deny=("CONFIG",)) if name.startswith(b"config")}
    assert b"config" in allowed(allow=("CONFIG GET",))


def test_who_may_do_nothing_may_still_log_in() -> None:
    """AUTH, HELLO and QUIT are open to a role that is allowed only GET."""
    assert {b"auth", b"hello", b"quit", b"get"} <= allowed(allow=("GET",))
