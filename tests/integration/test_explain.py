"""What `explain` says of a command against what a real proxy answers to it."""

from collections.abc import AsyncIterator, Sequence

import pytest

from proxy.commands import COMMANDS, Row
from proxy.embedded.redis import Servers
from proxy.embedded.sidecar import Sidecar, configuration_for
from proxy.explain import Explainer
from proxy.handlers.channels import KEYED
from proxy.keys import find_keys
from proxy.policy import compiler
from proxy.wire.rules import KeyKind
from tests.conftest import Clusters
from tests.integration.rig import Caller, is_error
from tests.integration.test_acl_matrix import words_of

pytestmark = pytest.mark.integration

RULES = """
defaults: {cluster: cache}
keyspaces:
  free: {key: "free:{rest:path}"}
  denied: {key: "denied:{rest:path}", commands: {deny: ["@all"]}}
  forced: {key: "forced:{rest:path}", ttl: {missing: reject}}
  typed: {key: "typed:{rest:path}", type: zset}
  other: {key: "other:{rest:path}", cluster: locks}
roles:
  default: {}
  some: {keyspaces: [free], commands: {allow: ["@all"]}}
"""

CLUSTERS = ("locks", "cache")

# All keys of a command, and for more than one the first and the last.
KEYS = [
    ("free:{x}", "free:{x}"), ("denied:{x}", "denied:{x}"), ("forced:{x}", "forced:{x}"),
    ("typed:{x}", "typed:{x}"), ("free:{x}", "denied:{x}"), ("free:{x}", "forced:{x}"),
    ("free:{x}", "typed:{x}"), ("free:{x}", "free:{y}"), ("free:{x}", "other:{x}"),
]  # fmt: skip

# How the proxy begins what it refuses by its rules. Nodes say none of these to what is sent here,
# but the last of keys that may hold anything.
REFUSALS = ("NOPERM", "POLICY", "CROSSSLOT", "WRONGTYPE")

ROWS = [
    row
    for row in COMMANDS
    if row.offered and row.keys.kind is not KeyKind.NONE and row.name not in KEYED
]


@pytest.fixture(scope="module")
async def started(
    both_clusters: dict[str, Servers], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Sidecar, Explainer]]:
    folder = tmp_path_factory.mktemp("explained")
    (folder / "policies").mkdir()
    (folder / "policies" / "rules.yaml").write_text(RULES)
    users = {"default": {"nopass": True}, "some": {"nopass": True, "role": "some"}}
    configuration = configuration_for(both_clusters, policies="policies", users=users)
    explainer = Explainer(compiler.read(folder / "policies", CLUSTERS), CLUSTERS)
    async with Sidecar(configuration, folder) as sidecar:
        yield sidecar, explainer


def spoken(row: Row, first: str, last: str) -> list[bytes]:
    """Return a command of as few words as it may have, and of two keys where it may have two."""
    words = [word.encode() for word in words_of(row, first)]
    kind, at, end, step = row.keys
    if kind is KeyKind.RANGE and end == -1 and row.arity < 0 and len(words) <= at + step:
        words += words[at : at + step]
    elif kind is KeyKind.NUMKEYS:
        words[at : at + 2] = [b"2", *[first.encode(), *[b"x"] * (step - 1)] * 2]
    elif kind is KeyKind.SORT and row.write:
        words += [b"STORE", first.encode()]
    places = find_keys(row, words) or ()
    if len(places) > 1:
        words[places[-1]] = last.encode()
    return words


@pytest.mark.parametrize("role", ["default", "some"])
@pytest.mark.parametrize("keys", KEYS, ids="-".join)
async def test_verdicts_are_those_of_the_proxy(
    started: tuple[Sidecar, Explainer], empty_clusters: Clusters, keys: tuple[str, str], role: str
) -> None:
    """Of every command with keys, refused by a rule or not, the verdict is what the proxy does."""
    sidecar, explainer = started
    caller = await Caller.open(sidecar.port)
    assert await caller.call("AUTH", role, "x") == b"OK"
    refusals = REFUSALS if keys[0].startswith("typed:") else REFUSALS[:-1]
    commands = [spoken(row, *keys) for row in ROWS]
    wrong = [
        (b" ".join(words), line, answered)
        for words, answered in zip(commands, await answers(caller, commands), strict=True)
        for line in [explainer.explain(words, role).line]
        if (answered != line[1:] if line else answered.startswith(refusals))
    ]
    assert wrong == []


async def answers(caller: Caller, commands: Sequence[Sequence[bytes]]) -> list[str]:
    """Return the error that each command was answered, empty for none; nothing stays watched."""
    replies = await caller.pipeline([each for words in commands for each in (words, [b"UNWATCH"])])
    return [str(reply) if is_error(reply) else "" for reply in replies[::2]]
