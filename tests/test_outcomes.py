"""What becomes of commands that the data plane leaves to handlers, without sending any."""

from pathlib import Path

import pytest

from proxy import explain, outcomes, wire
from tests.policy.rulebook import CLUSTERS, Folder

RULES = """\
defaults: {cluster: cache}
keyspaces:
  free: {key: "free:{rest:path}"}
  short: {key: "short:{rest:path}", ttl: {default: 60s}}
  denied: {key: "denied:{rest:path}", commands: {deny: ["@all"]}}
  tagged: {key: "tagged:{a}:{b}", hash_tag: a}
  other: {key: "other:{rest:path}", cluster: locks}
  page: {key: "page:{id}", type: hash, origin: {read: "SELECT :id"}}
  lock: {key: "lock:{id}", kind: lock, ttl: {default: 60s}}
  hall: {key: "hall:{rest:path}", kind: lock, ttl: {default: 60s}, commands: {deny: [EVAL]}}
channels:
  news: {channel: "news:{topic}"}
roles:
  default: {}
  deaf: {channels: []}
"""


def sent(tmp_path: Path, text: str, role: str = "default") -> outcomes.Outcome:
    """Return what becomes of a command of a role under the rules."""
    ruleset = explain.repeatable(explain.rows_of(Folder(tmp_path).load(RULES), CLUSTERS))
    _, router, batch = explain.stand(ruleset, len(CLUSTERS))
    side = wire.Downstream(router, batch, 0)
    side.assume(role)
    request = side.receive_data(wire.pack(text.encode().split()), 0.0)
    return outcomes.outcome_of(side, request, side.data_to_send())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("GET free:1", "forwarded"),
        ("COPY free:{x} free:{x}1", "forwarded"),
        ("SORT free:{x} STORE free:{x}1", "forwarded"),
        ("XPENDING tagged:1:2 g", "handled"),
        ("MGET free:1 free:2", "split"),
        ("BLPOP free:1 0", "pinned"),
        ("XREAD BLOCK 0 STREAMS free:1 0", "pinned"),
        ("WATCH free:1", "pinned"),
        ("EVAL x 1 free:1", "run"),
        ("EVAL x 0", "run"),
        ("FCALL f 1 free:1", "run"),
        ("HSET page:1 f v", "backed"),
        ("SET lock:1 me NX", "decided"),
        ("EVAL x 1 lock:1", "decided"),
        ("PUBLISH news:1 x", "answered"),
        ("SSUBSCRIBE news:1", "answered"),
        ("PING", "answered"),
    ],
)
def test_what_no_rule_refuses(tmp_path: Path, text: str, name: str) -> None:
    """Each way of a command has its name."""
    assert sent(tmp_path, text)[:2] == (name, "")


@pytest.mark.parametrize(
    ("text", "role", "line"),
    [
        ("COPY free:{x} denied:{x}", "default", "-NOPERM policy denies"),
        ("COPY free:{x} free:{x}1 DB 3", "default", "-ERR Copying to another database"),
        ("SORT free:1 BY w_*", "default", "-ERR BY option of SORT denied"),
        ("EVAL x 1 denied:1", "default", "-NOPERM policy denies"),
        ("EVAL x 2 free:1 denied:1", "default", "-NOPERM policy denies"),
        ("EVAL x 1 hall:1", "default", "-NOPERM policy denies"),
        ("EVAL x y", "default", "-ERR value is not an integer"),
        ("FCALL f y", "default", "-ERR Bad number of keys"),
        ("BLPOP denied:1 0", "default", "-NOPERM policy denies"),
        ("BLMPOP 0 y free:1 LEFT", "default", "-ERR numkeys"),
        ("WATCH free:{x} free:{y}", "default", "-CROSSSLOT"),
        ("MGET free:1 other:1", "default", "-CROSSSLOT"),
        ("HDEL lock:1 f", "default", "-"),
        ("PUBLISH news:1 x", "deaf", "-NOPERM this user has no permissions to access one"),
        ("SPUBLISH news:1 x", "deaf", "-NOPERM this user has no permissions to access one"),
        ("SUBSCRIBE news:1", "deaf", "-NOPERM this user has no permissions to access one"),
    ],
)
def test_what_handlers_refuse(tmp_path: Path, text: str, role: str, line: str) -> None:
    """The checks of handlers are asked, with their own words."""
    found = sent(tmp_path, text, role)
    assert found.name == "refused"
    assert found.line.startswith(line)
    assert not found.sent


def test_what_a_handler_sends(tmp_path: Path) -> None:
    """Keys have the names of nodes, and what rules send behind the command follows it."""
    [(cluster, copy), (_, follower)] = sent(tmp_path, "COPY free:{x} short:{x}").sent
    assert CLUSTERS[cluster] == "cache"
    assert copy == wire.pack(b"COPY free:{x} short:{x}".split())
    assert follower == wire.pack(b"PEXPIRE short:{x} 60000 NX".split())
    [(_, renamed)] = sent(tmp_path, "BLPOP tagged:1:2 0").sent
    assert renamed == wire.pack(b"BLPOP tagged:{1}:2 0".split())
