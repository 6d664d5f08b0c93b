"""Wishes that gather while calls are under way."""

import asyncio
from collections.abc import Sequence

import pytest

from proxy.errors import OriginBusy, OriginDown
from proxy.handlers import together as module
from proxy.handlers.together import CALLS, Together, Wish
from tests.handlers.backed_desk import plan

PLAN = plan()


def wish(key: bytes, counted: str | None = None, version: object = PLAN) -> Wish:
    return Wish(version, key, "owner", (), counted)  # type: ignore[arg-type]


class Teller:
    """Answers calls when it is told to; an answer is the key, and how many were in the call."""

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []
        self._open: list[asyncio.Future[None]] = []

    async def __call__(self, wishes: Sequence[Wish]) -> Sequence[tuple[bytes, int]]:
        self.calls.append([each.key for each in wishes])
        end = asyncio.get_running_loop().create_future()
        self._open.append(end)
        await end
        return [(each.key, len(wishes)) for each in wishes]

    async def end(self, error: Exception | None = None) -> None:
        """Let the oldest call end."""
        end = self._open.pop(0)
        end.set_exception(error) if error else end.set_result(None)
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def asked(
    together: "Together[tuple[bytes, int]]", *wishes: Wish
) -> list["asyncio.Task[tuple[bytes, int]]"]:
    tasks = [asyncio.create_task(together.ask(each)) for each in wishes]
    await settle()
    return tasks


@pytest.fixture
def teller() -> Teller:
    return Teller()


@pytest.fixture
async def together(teller: Teller) -> "Together[tuple[bytes, int]]":
    return Together(teller)


async def test_who_comes_alone_waits_for_nobody(
    together: "Together[tuple[bytes, int]]", teller: Teller
) -> None:
    """As long as few calls are under way each wish is one."""
    for number in range(CALLS):
        await asked(together, wish(b"%d" % number))
    assert teller.calls == [[b"0"], [b"1"]]


async def test_who_comes_meanwhile_shares_the_next_call(
    together: "Together[tuple[bytes, int]]", teller: Teller
) -> None:
    """All of them in one, in the order of their keys, and each hears its own answer."""
    await asked(together, wish(b"x"), wish(b"y"))
    tasks = await asked(together, *(wish(b"%d" % number) for number in reversed(range(5))))
    tasks.reverse()
    await teller.end()
    assert teller.calls[2:] == [[b"0", b"1", b"2", b"3", b"4"]]
    await teller.end()
    await teller.end()
    assert [task.result() for task in tasks] == [(b"%d" % number, 5) for number in range(5)]


async def test_no_wish_depends_on_another(
    together: "Together[tuple[bytes, int]]", teller: Teller
) -> None:
    """The same lock, an owner who is counted, and other policies are in different calls, in order.

    Of an owner who is not counted all are in one.
    """
    await asked(together, wish(b"x"), wish(b"y"))
    other = plan(name="other")
    await asked(
        together, wish(b"a", "u"), wish(b"a", "v"), wish(b"b", "u"), wish(b"c", "w", other),
        wish(b"d"), wish(b"e"),
    )  # fmt: skip
    for _ in range(5):
        await teller.end()
    assert teller.calls[2:] == [[b"a", b"d", b"e"], [b"a", b"b"], [b"c"]]


async def test_not_everybody_is_looked_at(
    together: "Together[tuple[bytes, int]]", teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a crowd that wants the same, others are in the next call but one, or later."""
    monkeypatch.setattr(module, "LOOKED", 3)
    await asked(together, wish(b"x"), wish(b"y"))
    await asked(together, *(wish(b"a") for _ in range(4)), wish(b"b"))
    for _ in range(5):
        await teller.end()
    assert teller.calls[2:] == [[b"a"], [b"a"], [b"a", b"b"], [b"a"]]


async def test_a_failure_is_that_of_its_call(
    together: "Together[tuple[bytes, int]]", teller: Teller
) -> None:
    """Who was in a call that failed hears why; who waited is in the next."""
    tasks = await asked(together, wish(b"x"), wish(b"y"), wish(b"z"))
    await teller.end(OriginDown("lost", sent=True))
    with pytest.raises(OriginDown, match="lost"):
        await tasks[0]
    await teller.end()
    await teller.end()
    assert [task.result()[0] for task in tasks[1:]] == [b"y", b"z"]


async def test_nobody_waits_for_ever(
    together: "Together[tuple[bytes, int]]", teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has waited for too long hears so, whatever calls do, and nothing of it was sent."""
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    tasks = await asked(together, wish(b"x"), wish(b"y"), wish(b"1"), wish(b"2"))
    for late in tasks[2:]:
        with pytest.raises(OriginBusy):
            await asyncio.wait_for(late, 5)
    assert teller.calls == [[b"x"], [b"y"]]
    assert not tasks[0].done()


async def test_so_many_wait_at_most(
    together: "Together[tuple[bytes, int]]", teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes when too many wait hears so at once."""
    monkeypatch.setattr(module, "WAITING", 2)
    await asked(together, wish(b"x"), wish(b"y"), wish(b"1"), wish(b"2"))
    (late,) = await asked(together, wish(b"3"))
    with pytest.raises(OriginBusy):
        await late


async def test_a_call_has_an_end(
    together: "Together[tuple[bytes, int]]", teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into one call is in the next."""
    monkeypatch.setattr(module, "MOST", 2)
    await asked(together, wish(b"x"), wish(b"y"), *(wish(b"%d" % number) for number in range(3)))
    await teller.end()
    await teller.end()
    assert teller.calls[2:] == [[b"0", b"1"], [b"2"]]


async def test_who_has_gone_is_not_asked_for(
    together: "Together[tuple[bytes, int]]", teller: Teller
) -> None:
    """A wish that was given up while it waited is in no call."""
    tasks = await asked(together, wish(b"x"), wish(b"y"), wish(b"z"))
    tasks[2].cancel()
    await settle()
    await teller.end()
    await teller.end()
    assert teller.calls == [[b"x"], [b"y"]]
