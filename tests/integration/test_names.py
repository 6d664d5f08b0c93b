"""No reply tells a client what a key is called at its node."""

import random
import re
from pathlib import Path

import pytest

from tests.conftest import Clusters
from tests.integration.grammar import Case
from tests.integration.rig import Caller, StartProxy, is_error

pytestmark = pytest.mark.integration

RULES = """
keyspaces:
  tagged: {key: "tagged:{event}:{rest:path}", cluster: cache, hash_tag: event}
  worded: {key: "worded:{rest:path}", cluster: locks, hash_tag: {literal: word}}
"""

COMMANDS = 6000

# What only asks, and quotes the names of keys that are not there.
ASKED = [
    [b"XREADGROUP", b"GROUP", b"g", b"c", b"STREAMS", b"?", b"?", b">", b">"],
    [b"XINFO", b"STREAM", b"?"],
    [b"XINFO", b"GROUPS", b"?"],
    [b"XINFO", b"CONSUMERS", b"?", b"g"],
    [b"XGROUP", b"CREATE", b"?", b"g", b"$"],
    [b"XGROUP", b"DESTROY", b"?", b"g"],
    [b"XACK", b"?", b"g", b"1-1"],
    [b"OBJECT", b"ENCODING", b"?"],
    [b"OBJECT", b"FREQ", b"?"],
    [b"MEMORY", b"USAGE", b"?"],
    [b"RENAME", b"?", b"?"],
    [b"LSET", b"?", b"0", b"v"],
    [b"RESTORE", b"?", b"0", b"x"],
    [b"COMMAND", b"GETKEYS", b"GET", b"?"],
    [b"SORT", b"?", b"BY", b"nosort", b"GET", b"#"],
    [b"COPY", b"?", b"?"],
    [b"BITOP", b"AND", b"?", b"?"],
    [b"XSETID", b"?", b"1-1"],
    [b"LCS", b"?", b"?"],
]


def quoted(value: object) -> bytes:
    """Return all text of a reply."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b" ".join(quoted(part) for pair in value.items() for part in pair)
    if isinstance(value, list | set | tuple):
        return b" ".join(map(quoted, value))
    return str(value).encode()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", ["tagged", "worded"])
async def test_no_name_of_a_node_in_a_reply(
    empty_clusters: Clusters, proxy_process: StartProxy, tmp_path: Path, protocol: int, kind: str
) -> None:
    """Whatever is asked of keys that are renamed, replies hold the client's names only."""
    (tmp_path / "rules.yaml").write_text(RULES)
    sidecar = await proxy_process(policies=str(tmp_path / "rules.yaml"))
    caller = await Caller.open(sidecar.port)
    await caller.call("HELLO", protocol)
    seed = random.SystemRandom().randrange(1_000_000)
    case = Case(random.Random(seed), [b"e1", b"e2", b"e3", b"e4"], [b"x"])
    front = kind.encode() + b":"
    # A script is told the names that nodes know, and may tell them.
    all_words = (case.command() for _ in range(COMMANDS))
    drawn = (words for words in all_words if not words[0].upper().startswith((b"EVAL", b"FCALL")))
    commands = [[re.sub(rb"^\{(e\d)\}(?=.)", front + rb"\1:", word) for word in words]
                for words in drawn]  # fmt: skip
    commands += [[front + b"e1:none" if word == b"?" else word for word in words]
                 for words in ASKED]  # fmt: skip
    commands += [["DBSIZE"], ["KEYS", "*"], ["KEYS", f"{kind}:e1:*"], ["SCAN", 0, "COUNT", 1000],
                 *[["RANDOMKEY"]] * 20]  # fmt: skip
    good = 0
    for start in range(0, len(commands), 50):
        part = commands[start : start + 50]
        for words, value in zip(part, await caller.pipeline(part), strict=True):
            good += not is_error(value)
            text = quoted(value)
            assert not re.search(rb"\{e\d\}|\{word\}", text), (seed, words, text[:300])
    assert good > COMMANDS // 2
    assert await caller.call("KEYS", "*")
    caller.close()
