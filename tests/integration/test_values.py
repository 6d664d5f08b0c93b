"""What a policy says of values, through a real proxy over real clusters."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.embedded.sidecar import Sidecar
from tests.conftest import Clusters
from tests.integration.rig import Caller, StartProxy, is_error

pytestmark = pytest.mark.integration

RULES = """
keyspaces:
  doc: {key: "doc:{id}", type: json, value: {json: true}}
  event: {key: "event:{id}", type: hash, value: {json: true}}
  queue: {key: "queue:{id}", type: list, value: {json: true}}
  cart: {key: "cart:{id}", type: json, hash_tag: id, value: {schema: cart.json}}
"""
CART = {"type": "object", "properties": {"seats": {"type": "array", "maxItems": 2}}}


@pytest.fixture
async def caller(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path
) -> AsyncIterator[Caller]:
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "cart.json").write_text(json.dumps(CART))
    proxy: Sidecar = await proxy_process(policies=str(tmp_path))
    made = await Caller.open(proxy.port)
    yield made
    made.close()


async def test_what_is_refused_never_reaches_a_node(caller: Caller) -> None:
    """Values that are refused leave no trace: in a pipeline, over slots, in a transaction."""
    for protocol in (2, 3):
        await caller.call("HELLO", protocol)
        await show_json(caller)
        await show_transactions(caller)
        await caller.call(
            "DEL", "doc:1", "doc:2", "x", "event:1", "queue:1", "{x}", "{x}l", "cart:1"
        )


async def show_json(caller: Caller) -> None:
    good, bad = '{"a":1}', '{"a":1,"a":2}'
    replies = await caller.pipeline([
        ("SET", "doc:1", good), ("SET", "doc:1", bad), ("GET", "doc:1"),
        ("MSET", "doc:1", "2", "doc:2", bad, "x", "any"), ("MGET", "doc:1", "doc:2", "x"),
        ("MSET", "doc:1", "2", "doc:2", good, "x", "any"), ("MGET", "doc:1", "doc:2", "x"),
        ("HSET", "event:1", "a", "1", "b", "no"), ("HSET", "event:1", "a", "1", "b", '"yes"'),
        ("LPUSH", "queue:1", good, bad), ("RPUSH", "queue:1", good, "[]"), ("LLEN", "queue:1"),
        ("APPEND", "doc:1", "2"), ("SET", "{x}", "text"), ("COPY", "{x}", "doc:{x}"),
        ("RENAME", "{x}", "doc:{x}"), ("GET", "doc:{x}"),
        ("LPUSH", "{x}l", "text"), ("BRPOPLPUSH", "{x}l", "queue:{x}", 1), ("LLEN", "{x}l"),
    ])  # fmt: skip
    refused = [number for number, reply in enumerate(replies) if is_error(reply)]
    assert refused == [1, 3, 7, 9, 12, 14, 15, 18]
    assert replies[2] == good.encode()
    assert replies[4] == [good.encode(), None, None]
    assert replies[6] == [b"2", good.encode(), b"any"]
    assert (replies[8], replies[10], replies[11], replies[16]) == (2, 2, 2, None)
    assert str(replies[1]).startswith("POLICY value refused by keyspace 'doc': it is no valid JSON")


async def show_transactions(caller: Caller) -> None:
    replies = await caller.pipeline([
        ("MULTI",), ("SET", "cart:1", '{"seats":[1,2]}'), ("SET", "cart:1", '{"seats":[1,2,3]}'),
        ("EXEC",), ("GET", "cart:1"),
        ("MULTI",), ("SET", "cart:1", '{"seats":[]}'), ("GET", "cart:1"), ("EXEC",),
    ])  # fmt: skip
    assert "its schema says otherwise at /seats (maxItems)" in str(replies[2])
    assert str(replies[3]).startswith("EXECABORT")
    assert replies[4] is None
    assert replies[8] == [b"OK", b'{"seats":[]}']


async def test_values_in_lines_and_in_pieces(caller: Caller) -> None:
    """A command that is typed in is judged too, and so is one of megabytes, which then arrives."""
    caller.writer.write(b"SET doc:1 {x\r\nSET doc:1 '[1, \"two\"]'\r\nGET doc:1\r\n")
    assert is_error(await caller.next())
    assert [await caller.next(), await caller.next()] == [b"OK", b'[1, "two"]']
    large = json.dumps({f"member {i}": "x" * 100 for i in range(30_000)}).encode()
    assert await caller.call("SET", "doc:1", large) == b"OK"
    assert is_error(await caller.call("SET", "doc:1", large[:-1]))
    assert await caller.call("GET", "doc:1") == large
