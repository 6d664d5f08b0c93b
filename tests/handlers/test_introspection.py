"""COMMAND and its sub-commands."""

from pathlib import Path

import pytest

from proxy import errors
from proxy.commands import COMMANDS
from proxy.policy.compiler import from_files
from tests.handlers.desk import Desk


async def test_the_list_is_what_is_offered() -> None:
    """What is refused does not exist for a client that asks."""
    client = Desk().connect()
    names = {entry[0] for entry in client.value(b"COMMAND", b"INFO")}
    assert {b"get", b"mset", b"client", b"object"} <= names
    assert not names & {b"swapdb", b"script|debug", b"debug", b"client|id"}
    assert client.value(b"COMMAND", b"COUNT") == len(names)
    assert set(client.value(b"COMMAND", b"LIST")) == names


async def test_the_list_is_what_the_role_may_send() -> None:
    """A command that the role may not send is not shown; a container goes with its last word."""
    modules = [row.name for row in COMMANDS if row.name.startswith(b"module|")]
    client = Desk(denied=[b"get", *modules]).connect()
    names = set(client.value(b"COMMAND", b"LIST"))
    assert b"get" not in names
    assert b"set" in names
    assert client.value(b"COMMAND", b"INFO", b"GET", b"SET")[0] is None


async def test_subcommands_are_inside_their_container() -> None:
    """An entry carries its sub-commands, those that are offered, in the same shape."""
    entry = Desk().connect().value(b"COMMAND", b"INFO", b"object")[0]
    assert len(entry) == 10
    assert {inner[0] for inner in entry[9]} >= {b"object|encoding", b"object|help"}
    assert all(len(inner) == 10 for inner in entry[9])


@pytest.mark.parametrize("name", [b"client|id", b"CLIENT|ID"])
async def test_info_of_a_subcommand(name: bytes) -> None:
    """A sub-command can be asked for by its full name, whatever its case."""
    assert Desk().connect().value(b"COMMAND", b"INFO", name)[0][0] == b"client|id"


async def test_filters() -> None:
    """LIST filters by pattern and by category."""
    client = Desk().connect()
    found = client.value(b"COMMAND", b"LIST", b"FILTERBY", b"PATTERN", b"HINCR*")
    assert sorted(found) == [b"hincrby", b"hincrbyfloat"]
    found = client.value(b"COMMAND", b"LIST", b"FILTERBY", b"ACLCAT", b"geo")
    assert b"geoadd" in found


@pytest.mark.parametrize("protocol", [b"2", b"3"])
async def test_docs_tell_how_a_command_is_treated(protocol: bytes) -> None:
    """DOCS has the fields that redis-cli needs, for all commands or for some."""
    client = Desk().connect()
    client.ask(b"HELLO", protocol)
    found = client.value(b"COMMAND", b"DOCS", b"get", b"nosuch", b"client")
    if protocol == b"2":
        found = dict(zip(found[::2], found[1::2], strict=True))
        found = {name: dict(zip(doc[::2], doc[1::2], strict=True)) for name, doc in found.items()}
    assert set(found) == {b"get", b"client"}
    assert found[b"get"][b"group"] == b"string"
    assert {b"summary", b"group", b"arguments"} <= set(found[b"get"])
    assert b"subcommands" in found[b"client"]
    assert len(client.value(b"COMMAND", b"DOCS")) >= 100


async def test_getkeysandflags() -> None:
    """Each key comes with whether it is read or written."""
    client = Desk().connect()
    found = client.value(b"COMMAND", b"GETKEYSANDFLAGS", b"MSET", b"a", b"1", b"b", b"2")
    assert found == [[b"a", [b"OW", b"update"]], [b"b", [b"OW", b"update"]]]


async def test_commands_that_policies_add(tmp_path: Path) -> None:
    """A command of a module is routed by its key, renamed with it, and shown by COMMAND."""
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        """
        defaults: {cluster: cache}
        commands: {add: [{name: JSON.SET, arity: -4}, {name: JSON.MGET, keys: "1:-2", write: no}]}
        keyspaces: {seat: {key: "seat:{event}:{n}", cluster: locks, hash_tag: event}}
        """
    )
    desk = Desk()
    desk.server.router.ruleset, _ = from_files(rules, ("cache", "locks"))
    client = desk.connect()
    client.send(b"JSON.SET", b"seat:a:1", b"$", b"{}")
    assert desk.node(3).commands() == [[b"JSON.SET", b"seat:{a}:1", b"$", b"{}"]]
    client.send(b"json.mget", b"{a}1", b"{a}2", b"$")
    assert desk.node(1).commands() == [[b"json.mget", b"{a}1", b"{a}2", b"$"]]
    client = desk.connect()
    assert client.ask(b"JSON.SET", b"a") == errors.wrong_arity(b"json.set")
    assert client.ask(b"JSON.MGET", b"a", b"b", b"$") == errors.CROSSSLOT
    (entry,) = client.value(b"COMMAND", b"INFO", b"json.set")
    assert entry[:2] == [b"json.set", -4]
    assert client.value(b"COMMAND", b"GETKEYS", b"JSON.MGET", b"a", b"b", b"$") == [b"a", b"b"]
    assert {b"json.set", b"json.mget", b"get"} <= set(client.value(b"COMMAND", b"LIST"))
    assert client.value(b"COMMAND", b"COUNT") == len(client.value(b"COMMAND"))
    assert client.ask(b"JSON.DEL", b"a").startswith(b"-ERR unknown command 'JSON.DEL'")
