"""The policy files as types: inheritance, names, and the schema for editors."""

import json
import pickle

import pytest

from proxy.policy import model
from proxy.policy.model import EMPTY
from tests.policy.rulebook import SHIPPED, Folder


def test_fields_that_are_not_set_come_from_the_defaults(folder: Folder) -> None:
    """Blocks are joined field by field; what a keyspace says itself wins."""
    policies = folder.load(
        "defaults: {cluster: locks, ttl: {default: 60s, max: 90s}, value: {max_bytes: 1kB}}\n"
        "keyspaces:\n"
        "  own: {key: a, cluster: cache, ttl: {default: 10s}}\n"
        "  bare: {key: b}\n"
    )
    own, bare = policies.effective["own"], policies.effective["bare"]
    assert (own.cluster, own.ttl.default, own.ttl.max) == ("cache", 10.0, 90.0)
    assert (bare.cluster, bare.ttl.default, bare.value.max_bytes) == ("locks", 60.0, 1000)
    assert policies.keyspaces["bare"].ttl.default is None


def test_a_default_that_is_wrong_for_a_keyspace_is_a_mistake_of_the_keyspace(
    folder: Folder,
) -> None:
    """What is inherited is checked as if it were written there."""
    found = folder.complaints(
        "defaults: {reads: replica}\n"
        "keyspaces:\n"
        "  a: {key: a}\n"
        "  b: {key: b, kind: state}\n"
    )  # fmt: skip
    assert len(found) == 1
    assert found[0].startswith("a.yaml:4:")
    assert "allowed: primary" in found[0]


@pytest.mark.parametrize("name", ["A", "1a", "a-b", "a.b", "'a b'", "é", "a" * 64, "''"])
def test_names_are_short_and_plain(folder: Folder, name: str) -> None:
    """A keyspace's name becomes a metric label, so it is told where it is not plain."""
    found = folder.complaints(f"keyspaces:\n  {name}: {{key: a}}\n")
    assert found == ["a.yaml:2:3: a name is a lower-case letter and up to 62 of a-z 0-9 _"]


@pytest.mark.parametrize("name", ["on", "off", "yes", "no", "y", "n", "true_", "null_"])
def test_words_that_yaml_knows_are_names(folder: Folder, name: str) -> None:
    """On, off, yes and no are words, not truth values, where a name is meant."""
    policies = folder.load(f"keyspaces: {{{name}: {{key: a}}}}")
    assert list(policies.keyspaces) == [name]


def test_limits_of_a_role_are_redis_own_unless_said(folder: Folder) -> None:
    """What a role does not limit is as large as Redis takes it, and never larger."""
    limits = folder.load("roles: {r: {}}").roles["r"].limits
    assert (limits.arguments, limits.argument_bytes, limits.inline_bytes) == (
        1 << 20, 512 << 20, 64 << 10,
    )  # fmt: skip
    assert folder.complaints("roles: {r: {limits: {argument_bytes: 1GiB}}}")
    assert folder.complaints("roles: {r: {limits: {arguments: 2000000}}}")


def test_the_schema_is_current() -> None:
    """The schema that editors complete from is the one that the model makes."""
    written = (SHIPPED / "policy.schema.json").read_text("utf-8")
    assert written == model.json_schema(), (
        "write it anew: sidecache schema > policies/policy.schema.json"
    )


def test_every_field_of_the_schema_is_described() -> None:
    """An editor shows a sentence for each field."""
    schema = json.loads(model.json_schema())

    def described(about: dict[str, str]) -> bool:
        """A field may say no more than its block."""
        return "description" in schema["$defs"].get(about.get("$ref", "").split("/")[-1], {})

    blocks = {"File": schema, **schema["$defs"]}
    silent = [
        f"{block}.{field}"
        for block, parts in blocks.items()
        for field, about in parts.get("properties", {}).items()
        if not about.get("description") and not described(about)
    ]
    assert not silent
    assert schema["additionalProperties"] is False


def test_policies_travel(folder: Folder) -> None:
    """Policies that went to another process are the same, and know where their fields stand."""
    policies = folder.load("keyspaces:\n  a:\n    key: a\n    ttl:\n      max: 60s\n")
    travelled = pickle.loads(pickle.dumps(policies))
    assert travelled == policies
    assert travelled.effective == policies.effective
    for location, line in ((("keyspaces", "a"), 2), (("keyspaces", "a", "ttl"), 4)):
        assert policies.place(location) == travelled.place(location)
        assert policies.place(location).split(":")[-2] == str(line)
    assert policies.place(("keyspaces", "a", "ttl", "max")).split(":")[-2] == "5"
    assert policies.place(("roles", "b")) == travelled.place(("roles", "b")) == ""
    assert pickle.loads(pickle.dumps(EMPTY)) == EMPTY
