"""The blocks of a keyspace: what each field takes and what is told of the rest."""

import pytest

from proxy.policy.blocks import BOUNDS, HashTagWord
from tests.policy.rulebook import Folder


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("ttl: {default: 600}", 'a duration needs a unit (ms, s, m, h, d); did you mean "600s"?'),
        ("ttl: {default: 10min}", 'did you mean "10m"?'),
        ("ttl: {default: 0s}", "must be more than 0"),
        ("ttl: {default: 20000d}", "longer than ten years"),
        ("ttl: {default: 10s, jitter: 0.1}", "expects a percentage from 0% to 100%"),
        ("ttl: {default: 10s, jitter: 101%}", "expects a percentage"),
        ("ttl: {default: 10s, refresh: on_raed}", 'did you mean "on_read"?'),
        (
            "ttl: {defualt: 10s}",
            'allowed: default, jitter, max, min, missing, mode, refresh; did you mean "default"?',
        ),
        ("ttl: 600s", "expects a mapping"),
        ("value: {max_bytes: 1Mb}", 'did you mean "1MB"?'),
        ("value: {max_bytes: 0}", "must be more than 0"),
        ("value: {max_bytes: -5}", "whole number of bytes"),
        ("value: {max_bytes: 99999GB}", "larger than 16 TiB"),
        ("value: {json: maybe}", "expects on or off"),
        ("memory: {budget: 1.5B}", "whole number of bytes"),
        ("memory: {priority: 101}", "priority"),
        ("memory: {items: many}", "expects a whole number"),
        ("rate:\n  - {per: client, limit: 1000}", "expects a rate"),
        ("rate:\n  - {per: client, limit: 10/week}", "is no period"),
        ("rate:\n  - {per: client, limit: 0/s}", "deny the commands instead"),
        ("rate:\n  - {per: Client, limit: 1/s}", "expects client, user, ip"),
        ("rate: {per: client, limit: 1/s}", "expects a list"),
        ("key_grammar: {characters: z-a}", "is no range"),
        ("hash_tag: {literal: }", "expects the name of a segment"),
        ("hash_tag: {literal: 'a{b'}", "has no braces"),
        ("hash_tag: [x]", "expects the name of a segment"),
        ("kind: lokc", 'did you mean "lock"?'),
        ("type: JSON", 'did you mean "json"?'),
        ("evict: lru_all", "allowed: never, lru, lfu, ttl"),
        ("commands: {bounds: {SCAN CUONT: 1}}", 'did you mean "SCAN COUNT"?'),
        ("commands: {bounds: {SCAN COUNT: -1}}", "greater than or equal to 0"),
        ("commands: {bounds: {SCAN COUNT: 9223372036854775808}}", "less than or equal to"),
        ("rate:\n  - {per: client, limit: 1000000001/s}", "is more than 1000000000"),
        ("type: list\ncollection: {max_items: 4294967296}", "less than or equal to 4294967295"),
        ("commands: {allow: GET}", "expects a list"),
        ("lock: {owner: user_id}", "owner"),
    ],
)
def test_what_a_field_does_not_take(folder: Folder, fields: str, told: str) -> None:
    """A wrong value is told once, at its line, with what is allowed or was meant."""
    found = folder.keyspace(fields)
    assert len(found) == 1, found
    assert told in found[0]
    line = 4 + fields.count("\n")
    assert found[0].startswith(f"a.yaml:{line}:")


@pytest.mark.parametrize("word", ["on", "yes", "true", "True", '"on"'])
def test_switches(folder: Folder, word: str) -> None:
    """A switch is on in each way that people write it, and off likewise."""
    opposite = {"on": "off", "yes": "no", "true": "false", "True": "False", '"on"': '"off"'}[word]
    text = "keyspaces: {k: {key: a, type: string, value: {json: WORD}}}"
    assert folder.load(text.replace("WORD", word)).keyspaces["k"].value.is_json is True
    assert folder.load(text.replace("WORD", opposite)).keyspaces["k"].value.is_json is False


def test_quantities_are_plain_numbers(folder: Folder) -> None:
    """Durations are seconds, sizes bytes, percentages shares of one, rates a count and seconds."""
    own = folder.load(
        "keyspaces:\n"
        "  k:\n"
        "    key: a:{x}\n"
        "    ttl: {default: 1.5h, jitter: 12.5%, min: 250ms}\n"
        "    value: {max_bytes: 1 MiB}\n"
        "    memory: {budget: 500MB}\n"
        "    rate: [{per: x, limit: 1000/min}]\n"
    ).keyspaces["k"]
    assert (own.ttl.default, own.ttl.jitter, own.ttl.min) == (5400.0, 0.125, 0.25)
    assert own.value.max_bytes == 1 << 20
    assert own.memory.budget == 500_000_000
    assert own.rate[0].limit == (1000, 60.0)


def test_hash_tags(folder: Folder) -> None:
    """A hash tag is a segment's name or a word of its own."""
    policies = folder.load(
        "keyspaces:\n  a: {key: 'a:{x}', hash_tag: x}\n  b: {key: b, hash_tag: {literal: w}}\n"
    )
    assert policies.keyspaces["a"].hash_tag == "x"
    assert policies.keyspaces["b"].hash_tag == HashTagWord("w")


def test_bounds_are_found_in_any_case(folder: Folder) -> None:
    """A bound is called by its name, whatever the case."""
    text = "keyspaces: {k: {key: a, commands: {bounds: {scan count: 10}}}}"
    assert folder.load(text).keyspaces["k"].commands.bounds == {"SCAN COUNT": 10}
    assert "SCAN COUNT" in BOUNDS
