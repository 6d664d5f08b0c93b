"""Keys that clients name as nodes name keys of a keyspace with a hash tag, in the data plane."""

from collections.abc import Callable

import pytest

from proxy import wire
from tests.policy.rulebook import Folder
from tests.wire.stage import Stage

WORD = 'fw: {key: "fw:{x}", hash_tag: {literal: w}}'
SEGMENT = 'ord: {key: "ord:{n:int}:x", hash_tag: n}'
REST = 'any: {key: "{rest:path}"}'

Rules = Callable[[str], wire.Ruleset]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    folder = Folder(tmp_path_factory.mktemp("policies"))
    return lambda spaces: folder.compile(f"keyspaces:\n  {spaces}\n")


def refused_by(rules: wire.Ruleset, key: str, cluster: int = -1) -> str | None:
    """Return the keyspace that refuses a key for its braces, or None where a node is asked."""
    stage = Stage(rules)
    client = stage.client()
    client.default_cluster = cluster
    assert client.receive_data(wire.pack([b"GET", key.encode()]), 1.0) is None
    told = client.data_to_send().decode()
    assert bool(told) != bool(stage.upstreams[0].data_to_send(1.0))
    assert not told or "hash_tag is put in between braces" in told
    return told.split("'")[1] if told else None


@pytest.mark.parametrize("others", ["", "\n  " + REST])
@pytest.mark.parametrize(
    ("key", "space"),
    [
        ("fw:1", None), ("{w}fw:1", "fw"), ("ord:5:x", None), ("ord:{5}:x", "ord"),
        # Of these no keyspace has the plain key, or it has another name at its node.
        ("{v}fw:1", None), ("{w}fw:a:b", None), ("ord:{x}:x", None), ("{ord:5}:x", None),
        ("ord:5{:x", None), ("ord:}5{:x", None), ("ord:{}5:x", None), ("{w}", None), ("{", None),
        ("or{d:5}:x", None), ("{w}ord:5:x", None),
    ],
)  # fmt: skip
def test_a_name_of_nodes_is_no_key(compiled: Rules, others: str, key: str, space: str) -> None:
    """What would be another key at its node is refused, in a keyspace that has any key too."""
    assert refused_by(compiled(WORD + "\n  " + SEGMENT + others), key) == space


def test_another_cluster_has_names_of_its_own(compiled: Rules) -> None:
    """Where a client's other keys live apart, the name is that of no key there."""
    rules = compiled(WORD)
    assert refused_by(rules, "{w}fw:1", cluster=1) == "fw"
    assert refused_by(rules, "{w}fw:1", cluster=0) is None
