"""Plays tests/conversations/*.txt with real wire objects and a clock that is moved by hand.

A line is `who verb text`, split at spaces; `#` behind two spaces begins a comment.

    nodes A B C                  the slots are divided evenly; a is at C, b at A, c at B
    clients X Y                  who connects; without this line one, called client
    keyspace NAME PATTERN [tag=SEGMENT|tag='WORD'] [cluster=N] [deny=COMMAND]
    deny COMMAND                 the role `default` may not send it
    slow COMMAND                 its handler holds the client until it is answered
    local COMMAND                a handler answers it, and holds nobody
    limits NAME=N ...            of the role `default`
    stranger WHO                 before AUTH

    client > GET a               sends a command; 128 x client > GET a sends it so often
    client >> *1\\r\\n$4             sends these bytes
    client < "1"                 has received a reply; `client <` alone: nothing more
    A < GET a                    has received a command; `A <` alone: nothing more
    A > -ERR no                  answers; "text" is a bulk string, anything else a line
    handler < SET b 2            was asked; handler > +OK answers the oldest question
    handler >>                   answers it with these bytes, or with none
    client hears >1\\r\\n+hi       is pushed something that answers nothing
    handler submits GET b        a part of the oldest question; `part < "1"`: what came of it
    handler sends SET b 1; GET b a transaction of these, as one: MULTI SET GET EXEC
    client gone | finishes | pauses | reads | is blocked,pending=2,...      A is fault,pending=0
    slots move KEY from A to B   a new slot map; `slots lose KEY`: nobody has it
    A lost | away | back         the connection ends; nobody can be reached there; somebody can
    time 0.5                     passes, in seconds

At the end everything must have been said: nothing unread, nobody unanswered.
"""

import re
from pathlib import Path

import pytest

from tests.wire import model
from tests.wire.player import SETTINGS, Player, Settings

FILES = sorted((Path(__file__).parent / "conversations").glob("*.txt"))


def lines_of(path: Path) -> list[tuple[int, str]]:
    lines = enumerate(path.read_text("utf-8").splitlines(), 1)
    plain = ((number, re.sub(r"(^|\s\s)#.*", "", line).strip()) for number, line in lines)
    return [(number, line) for number, line in plain if line]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_conversation(path: Path) -> None:
    """What a conversation says happens, line by line, and nothing else does."""
    lines = lines_of(path)
    settings = [line.split() for _, line in lines if line.split()[0] in SETTINGS]
    player = Player(Settings(settings))
    for number, line in lines[len(settings) :]:
        times, repeated = re.match(r"(?:(\d+) x )?(.*)", line).groups()  # type: ignore[union-attr]
        words = repeated.split()
        text = re.sub(r"^\S+\s+\S+\s*", "", repeated)
        try:
            for _ in range(int(times or 1)):
                player.play(words, text)
        except (AssertionError, model.Fault) as error:
            pytest.fail(f"{path.name}:{number}: {line}: {error}", pytrace=False)
    player.finish()


def test_every_conversation_says_what_it_shows() -> None:
    """A conversation begins with a sentence."""
    silent = [path.name for path in FILES if not re.match(r"# [A-Z].{20,}", path.read_text())]
    assert not silent
    assert len(FILES) >= 25
