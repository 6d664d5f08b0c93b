"""A node's names of keys, and what clients call them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.keys import client_name
from proxy.wire.rules import Segment
from tests.wire.stage import keyspace, ruleset

RULES = ruleset(
    keyspaces=[
        keyspace(
            "seat",
            [b"seat:", Segment("event", "text"), b":", Segment("seat", "text")],
            hash_tag=1,
        ),
        keyspace("first", [Segment("tenant", "text"), b":cart"], hash_tag=0),
        keyspace("jobs", [b"jobs:", Segment("rest", "path")], hash_tag=b"jobs"),
        keyspace("plain", [b"plain:", Segment("rest", "path")]),
    ]
)


@pytest.mark.parametrize(
    ("node", "client"),
    [
        (b"seat:{evt}:1", b"seat:evt:1"),
        (b"{shop}:cart", b"shop:cart"),
        (b"{jobs}jobs:mail:1", b"jobs:mail:1"),
        (b"plain:1", b"plain:1"),
        (b"plain:{a}:1", b"plain:{a}:1"),
        (b"{user1}.following", b"{user1}.following"),
        (b"{jobs}other", b"{jobs}other"),
        (b"}{", b"}{"),
        (b"{", b"{"),
        (b"", b""),
        # Written past the proxy: under these names a client reaches other keys.
        (b"seat:evt:1", None),
        (b"jobs:mail:1", None),
        # Keys of the proxy itself.
        (b"sidecache:lease", None),
        (b"sidecache:{evt}:gate", None),
    ],
)
def test_names(node: bytes, client: bytes | None) -> None:
    """A name is given back without the tag that was put in, and what nobody can ask for is not."""
    assert client_name(RULES, node) == client


keys = st.one_of(
    st.binary(max_size=12),
    st.text("abc:{}", max_size=12).map(str.encode),
    st.tuples(st.sampled_from([b"seat:", b"jobs:", b"plain:", b""]), st.text("ab:", max_size=8))
    .map(lambda pair: pair[0] + pair[1].encode()),
)  # fmt: skip


@given(keys)
def test_there_and_back(key: bytes) -> None:
    """What is shown is the key that the client's name leads to, and every legal name is shown."""
    shown = client_name(RULES, key)
    assert shown is None or RULES.upstream_name(shown) == key
    if b"{" not in key and b"}" not in key and not key.startswith(b"sidecache:"):
        assert client_name(RULES, RULES.upstream_name(key)) == key
