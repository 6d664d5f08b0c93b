"""The admin port's questions about commands."""

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus

import pytest

from proxy import inquiry
from proxy.errors import PolicyError
from proxy.explain import Explainer
from proxy.policy.model import EMPTY


class Rules:
    def explainer(self) -> Explainer:
        return Explainer(EMPTY, ("cache",))


class NoRules:
    def explainer(self) -> Explainer:
        raise PolicyError("reload them first")


async def ask(query: str, rules: inquiry.Explained) -> tuple[HTTPStatus, str]:
    loop = asyncio.get_running_loop()

    def run(
        verb: Callable[[object], Coroutine[None, None, str]], seconds: float
    ) -> tuple[HTTPStatus, str]:
        future = asyncio.run_coroutine_threadsafe(verb(None), loop)
        return HTTPStatus.OK, f"{future.result(seconds)}\n"

    return await asyncio.to_thread(inquiry.answer, query, rules, run)


async def test_a_command_in_the_address() -> None:
    """The command is taken apart as a shell does it, and judged."""
    status, text = await ask("command=SET+'a b'+1&protocol=3", Rules())
    assert status == 200
    assert "key        a b\n" in text
    assert text.endswith("verdict    forwarded to the node of its slot\n")


@pytest.mark.parametrize(
    "query",
    ["", "command=", "command='", "role=default", "command=GET+a&x=1", "command=PING&protocol=4",
     "command=PING&role=ghost"],
)  # fmt: skip
async def test_wrong_questions(query: str) -> None:
    """What is no question is told how to ask."""
    assert (await ask(query, Rules()))[0] == HTTPStatus.BAD_REQUEST


async def test_rules_that_cannot_be_had() -> None:
    """Where the rules in force are not those of the files, that is the answer."""
    status, text = await ask("command=PING", NoRules())
    assert (status, text) == (HTTPStatus.UNPROCESSABLE_ENTITY, "reload them first\n")
