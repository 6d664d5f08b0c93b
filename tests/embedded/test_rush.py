"""The oracle of the sale finds what must not happen, and nothing else."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from proxy.embedded.rush import Oracle, Sale, _told, _try
from proxy.embedded.smoke import Client

pytestmark = pytest.mark.integration


def test_a_sale_without_fault() -> None:
    """Granted, given up, granted to another with a greater token, sold: nothing is wrong."""
    oracle = Oracle()
    oracle.granted("s1", "u1", 1)
    oracle.given_up("s1")
    oracle.granted("s1", "u2", 2)
    oracle.confirmed("s1", "u2")
    oracle.given_up("s1")
    oracle.granted("s2", "u1", 3)
    assert oracle.doubles == []
    assert oracle.sold == {"s1": "u2"}


def test_who_comes_back_holds_the_same_grant() -> None:
    """Who left without a word and is told the same token again is no second holder."""
    oracle = Oracle()
    oracle.granted("s1", "u1", 1)
    oracle.given_up("s1")
    oracle.granted("s1", "u1", 1)
    assert oracle.doubles == []


def test_a_double_grant_is_found() -> None:
    """A seat that is granted while another has not given it up is held twice."""
    oracle = Oracle()
    oracle.granted("s1", "u1", 1)
    oracle.granted("s1", "u2", 2)
    assert oracle.doubles == ["s1: u2 while u1 held it"]


@pytest.mark.parametrize("token", [7, 6])
def test_a_repeated_token_is_found(token: int) -> None:
    """A token that is not greater than that of an earlier holder is no proof."""
    oracle = Oracle()
    oracle.granted("s1", "u1", 7)
    oracle.given_up("s1")
    oracle.granted("s1", "u2", token)
    assert oracle.doubles == [f"s1: token {token} is not greater than 7, the last one"]


def test_a_seat_that_is_sold_twice_is_found() -> None:
    """Neither granted again after it was sold nor confirmed for another."""
    oracle = Oracle()
    oracle.confirmed("s1", "u1")
    oracle.granted("s1", "u2", 2)
    oracle.confirmed("s1", "u2")
    assert oracle.doubles == ["s1: u2 after it was sold to u1", "s1: sold to u1 and to u2"]


def test_what_buyers_have_heard_is_one_line() -> None:
    """Grants, refusals, sales, errors and the time of the slowest of a hundred."""
    sale = Sale(times=[0.001] * 99 + [0.5])
    sale.heard.update({"acquired": 3, "held": 4, "queue": 1, "error": 2})
    sale.oracle.confirmed("s1", "u1")
    line = sale.row(12.5)
    assert "granted      3  refused        5  sold    1  errors    2" in line
    assert "p50    1.0 ms  p99    1.0 ms  held twice 0" in line


def test_an_error_is_no_reply_of_a_seat() -> None:
    """Of what is no flat array no field is told."""
    assert _told([b"outcome", b"held"]) == {b"outcome": b"held"}
    assert _told("ERR") == {}


@contextlib.asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[Client]:
    """A client of somebody who answers the first command so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"rush\r\n")
        writer.write(reply)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        client = Client(*await asyncio.open_connection(*server.sockets[0].getsockname()))
        yield client
        client.close()


@pytest.mark.parametrize(
    ("reply", "heard"),
    [
        (b"-TRYAGAIN later\r\n", "error"),
        (b"*4\r\n$7\r\noutcome\r\n$4\r\nheld\r\n$13\r\nexpires_in_ms\r\n:9\r\n", "held"),
    ],
)
async def test_a_buyer_is_refused(reply: bytes, heard: str) -> None:
    """What a buyer hears is counted, and the oracle learns nothing of it."""
    sale = Sale()
    async with answering(reply) as client:
        await _try(client, sale, "s1", "u1", "b1", random.Random(1))
    assert sale.heard == {heard: 1}
    assert len(sale.times) == 1
    sale.oracle.granted("s1", "u2", 1)
    assert sale.oracle.doubles == []
