"""Scripts of policies as commands, on real sessions before nodes that answer when told to."""

import hashlib
from pathlib import Path

import pytest

from proxy import errors, resp
from tests.handlers.desk import Client, Desk
from tests.policy.rulebook import Folder

BODY = b"return {'outcome', 'added'}"
SHA = hashlib.sha1(BODY).hexdigest().encode()

RULES = """
defaults: {cluster: locks}
keyspaces:
  cart: {key: "cart:{user}", cluster: cache, hash_tag: user, commands: {deny: [CART.DROP]}}
  free: {key: "free:{name}", cluster: cache, hash_tag: {literal: f}}
scripts:
  add:
    name: CART.ADD
    file: t.lua
    keys: ["cart:{user}"]
    arguments: [user, item]
    more: others
    reply: map
  drop: {name: CART.DROP, file: u.lua, keys: ["cart:{user}"], arguments: [user]}
  look: {name: LOOK, file: v.lua, keys: ["free:{a}", "free:{b}"], arguments: [a, b], reads: true}
  none: {name: NONE, file: w.lua, keys: [], arguments: [a]}
"""

NOSCRIPT = b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
OUTCOME = b"*2\r\n$7\r\noutcome\r\n$5\r\nadded\r\n"


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    folder = Folder(tmp_path)
    (tmp_path / "lua").mkdir()
    for name, body in (("t", BODY), ("u", b"return 1"), ("v", b"return 2"), ("w", b"return 3")):
        (tmp_path / "lua" / f"{name}.lua").write_bytes(body)
    desk = Desk()
    desk.server.router.ruleset = folder.compile(RULES)
    return desk


@pytest.fixture
def client(desk: Desk) -> Client:
    return desk.connect()


def nodes_got(desk: Desk, protocol: int = 2) -> list[list[bytes]]:
    return [words for number in range(4) for words in desk.node(number, protocol).commands()]


def owner(desk: Desk, protocol: int = 2) -> int:
    """Return the node that has been asked something."""
    return next(number for number in range(4) if desk.node(number, protocol).sent)


async def test_a_command_is_run_by_its_digest(desk: Desk, client: Client) -> None:
    """Keys are made of the arguments and named as nodes name them; any case will do."""
    for name in (b"CART.ADD", b"cart.Add"):
        client.send(name, b"u", b"sku", b"x", b"y")
        node = desk.node(owner(desk))
        run = [b"EVALSHA", SHA, b"1", b"cart:{u}", b"u", b"sku", b"x", b"y"]
        assert nodes_got(desk) == [run]
        node.answer(OUTCOME)
        assert await client.reply() == OUTCOME


async def test_a_node_that_has_forgotten_gets_the_body(desk: Desk, client: Client) -> None:
    """Behind NOSCRIPT the run is repeated with its body; by a script that reads as one."""
    client.send(b"look", b"x", b"y")
    node = desk.node(owner(desk))
    (first,) = nodes_got(desk)
    assert first[0] == b"EVALSHA_RO"
    node.answer(NOSCRIPT)
    desk.settle()
    keys = [b"2", b"{f}free:x", b"{f}free:y", b"x", b"y"]
    assert nodes_got(desk) == [[b"EVAL_RO", b"return 2", *keys]]
    node.answer(b":2\r\n")
    assert await client.reply() == b":2\r\n"


@pytest.mark.parametrize("words", [[b"CART.ADD"], [b"CART.ADD", b"u"], [b"LOOK", b"a"],
                                   [b"look", b"a", b"b", b"c"]])  # fmt: skip
async def test_too_few_words_and_too_many(desk: Desk, client: Client, words: list[bytes]) -> None:
    """A wrong number of words gets Redis' own line, and no node hears of it."""
    name = words[0].lower()
    assert client.ask(*words) == errors.wrong_arity(name)
    assert client.ask(b"MULTI") == resp.OK
    assert client.ask(*words) == errors.wrong_arity(name)
    assert client.ask(b"EXEC") == errors.EXECABORT
    assert nodes_got(desk) == []


async def test_keys_are_judged_as_any_others(desk: Desk, client: Client) -> None:
    """Rights and grammar of the keyspace hold, and no argument is more than its part of a key."""
    assert client.ask(b"CART.DROP", b"u").startswith(b"-NOPERM policy denies")
    assert client.ask(b"CART.ADD", b"u:1", b"sku").startswith(b"-POLICY argument refused by")
    assert client.ask(b"CART.ADD", b"u\n", b"sku").startswith(b"-POLICY key refused by")
    assert client.ask(b"CART.ADD", b"u{1}", b"sku").startswith(b"-POLICY key refused by")
    assert nodes_got(desk) == []


@pytest.mark.parametrize(
    "words",
    [
        [b"EVAL", BODY],
        [b"EVALSHA", SHA.upper()],
        [b"FCALL", b"CART.ADD"],
        [b"fcall", b"cart_add"],
    ],
)
async def test_its_body_is_its_command(desk: Desk, client: Client, words: list[bytes]) -> None:
    """Who runs the body by another command is judged as by its own, keys and arguments alike."""
    client.send(*words, b"1", b"cart:u", b"u", b"sku")
    node = desk.node(owner(desk))
    assert nodes_got(desk) == [[b"EVALSHA", SHA, b"1", b"cart:{u}", b"u", b"sku"]]
    node.answer(OUTCOME)
    assert await client.reply() == OUTCOME
    refused = errors.keys_of_script("cart.add")
    assert client.ask(*words, b"1", b"cart:v", b"u", b"sku") == refused
    assert client.ask(*words, b"0", b"u", b"sku") == refused
    assert client.ask(*words, b"2", b"cart:u", b"cart:u", b"u", b"sku") == refused
    assert client.ask(*words, b"1", b"cart:u", b"u") == errors.wrong_arity(b"cart.add")
    assert nodes_got(desk) == []


@pytest.mark.parametrize("words", [[b"EVAL_RO", BODY], [b"EVALSHA_RO", SHA]])
async def test_what_may_not_write_stays_so(desk: Desk, client: Client, words: list[bytes]) -> None:
    """A read-only run of a body that may write is sent as it is, for nodes to refuse its writes."""
    client.send(*words, b"1", b"cart:u", b"u", b"sku")
    assert nodes_got(desk) == [[*words, b"1", b"cart:{u}", b"u", b"sku"]]


async def test_other_scripts_are_no_commands(desk: Desk, client: Client) -> None:
    """A body that no policy offers is run as it is, with the keys that its client says."""
    client.send(b"EVAL", b"return 9", b"1", b"cart:v", b"u", b"sku")
    assert nodes_got(desk) == [[b"EVAL", b"return 9", b"1", b"cart:{v}", b"u", b"sku"]]
    client.send(b"EVALSHA", SHA, b"x", b"cart:u")
    assert nodes_got(desk) == []


async def test_a_map_is_one_for_who_speaks_of_maps(desk: Desk) -> None:
    """A flat array is a map under RESP3 and stays one under RESP2; errors and nulls stay too."""
    client = desk.connect()
    client.ask(b"HELLO", b"3")
    mapped = b"%1\r\n$7\r\noutcome\r\n$5\r\nadded\r\n"
    odd, null, line = b"*1\r\n:1\r\n", b"_\r\n", b"-ERR no\r\n"
    for reply, seen in ((OUTCOME, mapped), (odd, odd), (null, null), (line, line)):
        client.send(b"CART.ADD", b"u", b"sku")
        desk.node(owner(desk, 3), 3).answer(reply)
        nodes_got(desk, 3)
        assert await client.reply() == seen


@pytest.mark.parametrize("protocol", [2, 3])
async def test_in_a_transaction(desk: Desk, protocol: int) -> None:
    """It is queued with its body, because nothing can be repaired once EXEC has run the rest."""
    client = desk.connect()
    client.ask(b"HELLO", b"%d" % protocol)
    client.ask(b"MULTI")
    assert client.ask(b"CART.ADD", b"u", b"sku") == b"+QUEUED\r\n"
    assert client.ask(b"GET", b"cart:u") == b"+QUEUED\r\n"
    client.send(b"EXEC")
    node = desk.node(owner(desk, protocol), protocol)
    sent = nodes_got(desk, protocol)
    assert sent[1] == [b"EVAL", BODY, b"1", b"cart:{u}", b"u", b"sku"]
    queued = b"+QUEUED\r\n" * 2
    node.answer(b"+OK\r\n" + queued + b"*2\r\n" + OUTCOME + b"$1\r\nx\r\n")
    seen = OUTCOME.replace(b"*2", b"%1") if protocol == 3 else OUTCOME
    assert await client.reply() == b"*2\r\n" + seen + b"$1\r\nx\r\n"


async def test_order_of_a_pipeline(desk: Desk, client: Client) -> None:
    """What follows is not held up by a script that takes its body along, and answered behind it."""
    client.send_all([[b"CART.ADD", b"u", b"sku"], [b"GET", b"cart:u"], [b"CART.ADD", b"u", b"x"]])
    node = desk.node(owner(desk))
    assert nodes_got(desk) == [
        [b"EVAL", BODY, b"1", b"cart:{u}", b"u", b"sku"],
        [b"GET", b"cart:{u}"],
        [b"EVALSHA", SHA, b"1", b"cart:{u}", b"u", b"x"],
    ]
    client.send(b"GET", b"cart:u")
    assert nodes_got(desk) == []
    node.answer(OUTCOME, b"$1\r\nx\r\n", NOSCRIPT)
    await said(client, OUTCOME + b"$1\r\nx\r\n")
    assert nodes_got(desk) == [[b"EVAL", BODY, b"1", b"cart:{u}", b"u", b"x"]]
    node.answer(OUTCOME)
    await said(client, OUTCOME)
    assert nodes_got(desk) == [[b"GET", b"cart:{u}"]]


async def said(client: Client, reply: bytes) -> None:
    """Expect these bytes, however many handlers they come from."""
    received = b""
    while len(received) < len(reply):
        received += await client.reply()
    assert received == reply
    client.desk.settle()


async def test_a_script_without_keys(desk: Desk, client: Client) -> None:
    """It runs on one node of the default cluster."""
    client.send(b"NONE", b"a")
    ((name, _, *rest),) = nodes_got(desk)
    assert (name, rest) == (b"EVALSHA", [b"0", b"a"])


async def test_it_is_among_the_commands(desk: Desk, client: Client) -> None:
    """COMMAND knows it by INFO, DOCS, COUNT, LIST and GETKEYS, and ACL CAT by its categories."""
    plain = Desk().connect().value(b"COMMAND", b"COUNT")
    assert client.value(b"COMMAND", b"COUNT") == plain + 4
    add, look = client.value(b"COMMAND", b"INFO", b"cart.add", b"LOOK")
    assert (add[:2], look[:2]) == ([b"cart.add", -3], [b"look", 3])
    assert {b"write", b"movablekeys"} <= set(add[2])
    assert b"@write" in add[6]
    assert b"readonly" in look[2]
    assert b"@read" in look[6]
    assert client.value(b"COMMAND", b"DOCS", b"CART.ADD")[0] == b"cart.add"
    assert b"cart.drop" in client.value(b"COMMAND", b"LIST")
    assert client.value(b"COMMAND", b"GETKEYS", b"LOOK", b"a", b"b") == [b"free:a", b"free:b"]
    assert client.value(b"COMMAND", b"GETKEYS", b"CART.ADD", b"u", b"s") == [b"cart:u"]
    assert client.value(b"COMMAND", b"GETKEYS", b"NONE", b"a") == []
    assert client.ask(b"COMMAND", b"GETKEYS", b"LOOK", b"a") == errors.INVALID_COMMAND_ARITY
    refused = client.ask(b"COMMAND", b"GETKEYS", b"CART.ADD", b"u:1", b"s")
    assert refused == errors.INVALID_COMMAND_ARGUMENTS
