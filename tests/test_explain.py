"""What would become of a command, as the data plane itself judges it."""

from pathlib import Path

import pytest

from proxy.explain import MOST_KEYS, Explainer, Explanation
from tests.policy.rulebook import CLUSTERS, Folder, load

RULES = """\
keyspaces:
  seat:
    key: seat:{event}:{seat}
    cluster: locks
    hash_tag: event
    type: string
    kind: lock
    ttl: {default: 600s}
    lock: {authority: redis}
    value: {max_bytes: 4B, mode: warn}
    on_loss: restore
  page:
    key: page:{id}
    type: hash
    origin: {read: "SELECT :id"}
    freshness: {stale_if_error: 60s}
    fallback: {reads: origin}
    on_loss: refill
roles:
  reader: {commands: {allow: ["@read"]}}
"""


@pytest.fixture
def explainer(tmp_path: Path) -> Explainer:
    policies = load(Folder(tmp_path).write(RULES))
    return Explainer(policies, CLUSTERS, lambda cluster, slot: f"node{cluster}:{slot}")


def explain(explainer: Explainer, text: str, role: str = "default") -> tuple[Explanation, str]:
    found = explainer.explain([word.encode() for word in text.split()], role)
    return found, "\n".join(explainer.lines(found))


def test_a_command_that_is_forwarded(explainer: Explainer) -> None:
    """Keyspace, rules, node, slot, the command that the node gets and bad times are told."""
    found, text = explain(explainer, "SET seat:e1:s2 x")
    assert found.outcome == "forwarded"
    assert "a.yaml:2:3)" in text
    assert "nodes see  seat:{e1}:s2" in text
    assert f"of cluster locks, node node0:{found.keys[0].slot}" in text
    assert "node gets  SET seat:{e1}:s2 x" in text
    assert "(cluster locks)" in text
    assert "rule       key_grammar of seat has nothing against it" in text
    assert "after Redis lost its data: all keys are read" in text
    assert text.splitlines()[-1] == "verdict    forwarded to the node of its slot"


def test_a_rule_that_refuses(explainer: Explainer) -> None:
    """The rule that refuses a command is named, with its place, and the line of the error."""
    found, text = explain(explainer, "SADD page:1 x")
    assert found.refused
    assert "rule       type of page refuses it" in text
    assert "a.yaml:14:5)" in text
    assert found.line.startswith("-WRONGTYPE")
    assert not found.frames
    assert "reads are answered from PostgreSQL" in text
    assert "an entry is served for 60s after its time" in text


def test_a_rule_on_trial(explainer: Explainer) -> None:
    """A rule that only warns would refuse the command, and lets it through."""
    found, text = explain(explainer, "SET seat:e1:s2 longer")
    assert found.outcome == "forwarded"
    assert "value of seat would refuse it, and lets it through: mode warn" in text


def test_chance_and_memory_are_left_out(tmp_path: Path) -> None:
    """However often it is asked: a rate limit counts, it does not fill; no dice are thrown."""
    many = "keyspaces: {many: {key: 'many:{id}', rate: [{per: global, limit: 1/h}], "
    many += "ttl: {default: 9s, jitter: 90%}, value: {max_bytes: 1B, mode: enforce 50%}}}\n"
    explainer = Explainer(load(Folder(tmp_path).write(many)), CLUSTERS)
    texts = {explain(explainer, "SET many:1 xx")[1] for _ in range(50)}
    [text] = texts
    assert "rate of many counts it" in text
    assert "value of many would refuse it, and lets it through: mode enforce 50%" in text
    assert "node gets  SET many:1 xx PX 9000" in text


def test_explaining_twice_is_the_same(explainer: Explainer) -> None:
    """An explanation leaves nothing behind that changes the next."""
    assert explain(explainer, "SADD page:1 x") == explain(explainer, "SADD page:1 x")
    assert (
        explain(explainer, "SET seat:e1:s2 longer")[1]
        == explain(explainer, "SET seat:e1:s2 longer")[1]
    )


@pytest.mark.parametrize(
    ("text", "role", "outcome"),
    [
        ("GET other", "default", "forwarded"),
        ("MGET a b", "default", "split"),
        ("PING", "default", "answered"),
        ("NOPE", "default", "refused"),
        ("GET", "default", "refused"),
        ("SET a b", "reader", "refused"),
        ("GET a", "reader", "forwarded"),
        ("GET \x01", "default", "refused"),
    ],
)
def test_outcomes(explainer: Explainer, text: str, role: str, outcome: str) -> None:
    """What becomes of a command depends on it and on the role of its sender."""
    found, lines = explain(explainer, text, role)
    assert found.outcome == outcome
    assert all(line.isprintable() for line in lines.splitlines())


def test_what_is_told_is_bounded(explainer: Explainer) -> None:
    """A command of thousands of long words is told in a few short lines."""
    found, text = explain(explainer, "DEL " + " ".join(f"k{'x' * 500}{i}" for i in range(2000)))
    assert len(found.keys) == MOST_KEYS
    assert len(text) < 20_000


SCRIPTS = """\
scripts:
  take: {name: SEAT.TAKE, file: t.lua, keys: ["seat:{event}:{seat}"], arguments: [event, seat]}
"""


def test_a_script(tmp_path: Path) -> None:
    """A script's command is told with its keys, their rules, and the run that their node gets."""
    (tmp_path / "lua").mkdir()
    (tmp_path / "lua" / "t.lua").write_text("return 1")
    rules = RULES.replace("kind: lock", "kind: lock\n    commands: {deny: [TOUCH]}") + SCRIPTS
    explainer = Explainer(load(Folder(tmp_path).write(rules)), CLUSTERS)
    for line in ("seat.take e1 s2", "FCALL seat_take 1 seat:e1:s2 e1 s2"):
        found, text = explain(explainer, line)
        assert found.outcome == "run"
        assert "key        seat:e1:s2" in text
        assert "rule       key_grammar of seat has nothing against it" in text
        assert "node gets  EVALSHA " in text
        assert " 1 seat:{e1}:s2 e1 s2  (cluster locks)" in text
        assert text.splitlines()[-1] == "verdict    a script, run by the node of its keys"
    found, _ = explain(explainer, "SEAT.TAKE e1 s{2}")
    assert found.refused
    assert found.line.startswith("-POLICY key refused by keyspace 'seat'")
    found, _ = explain(explainer, "SEAT.TAKE e1 s2", "reader")
    assert found.line.startswith("-NOPERM")
    found, text = explain(explainer, "SEAT.TAKE e1")
    assert found.line.startswith("-ERR wrong number of arguments for 'seat.take'")
    assert not found.keys


def test_a_lock_is_decided(tmp_path: Path) -> None:
    """What PostgreSQL does is told as that, also while Redis is away."""
    rules = "keyspaces:\n  lock: {key: 'lock:{id}', kind: lock, ttl: {default: 60s}}\n"
    policies = load(Folder(tmp_path).write(rules))
    found, text = explain(Explainer(policies, CLUSTERS), "SET lock:a me NX")
    assert found.outcome == "decided"
    assert "without Redis: PostgreSQL goes on to decide" in text
    assert text.splitlines()[-1].startswith("verdict    done by PostgreSQL")
