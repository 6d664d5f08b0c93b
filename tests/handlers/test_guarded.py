"""COPY and SORT: forwarded after a look at their arguments."""

import pytest

from proxy import errors
from tests.handlers.desk import Desk


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (b"COPY a {a}b DB 3", errors.COPY_DB_REFUSED),
        (b"COPY a {a}b REPLACE DB 00", errors.NOT_AN_INTEGER),
        (b"COPY a {a}b DB x", errors.NOT_AN_INTEGER),
        (b"COPY a {a}b DB", errors.SYNTAX),
        (b"COPY a {a}b OVER", errors.SYNTAX),
        (b"COPY a b", errors.CROSSSLOT),
        (b"COPY a seat_lock:a:1", errors.CROSS_CLUSTER),
        (b"SORT a BY w_*", errors.SORT_BY_REFUSED),
        (b"SORT a LIMIT 0 1 by w_*", errors.SORT_BY_REFUSED),
        (b"SORT a GET # GET w_*->f", errors.SORT_GET_REFUSED),
        (b"SORT_RO a BY w_*", errors.SORT_BY_REFUSED),
        (b"SORT a STORE b", errors.CROSSSLOT),
    ],
)
async def test_what_leaves_the_rules_is_refused(words: bytes, line: bytes) -> None:
    """Another database, and keys that no rule has seen, are refused whatever the node is."""
    desk = Desk()
    assert desk.connect().ask(*words.split()) == line
    assert all(node.commands() == [] for pair in desk.nodes for node in pair)


@pytest.mark.parametrize(
    "words",
    [
        b"COPY a {a}b DB 0 REPLACE",
        b"SORT a BY nosort GET # ALPHA LIMIT 0 5",
        b"SORT a STORE {a}b",
        b"SORT a BY BY STORE {a}b",
        b"SORT_RO a DESC",
        b"SORT a GET BY *",
    ],
)
async def test_the_rest_is_forwarded_as_it_is(words: bytes) -> None:
    """What a cluster carries out reaches its node unchanged, and the reply the client."""
    desk = Desk()
    client = desk.connect()
    client.send(*words.split())
    assert desk.node(1).commands() == [words.split()]
    desk.node(1).answer(b":1\r\n")
    assert await client.reply() == b":1\r\n"


async def test_names_are_those_of_the_node() -> None:
    """Keys with a hash tag go out under their names at the node."""
    desk = Desk()
    client = desk.connect()
    client.send(b"COPY", b"seat_lock:a:1", b"seat_lock:a:2")
    assert desk.node(3).commands() == [[b"COPY", b"seat_lock:{a}:1", b"seat_lock:{a}:2"]]
