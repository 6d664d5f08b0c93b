"""The command line before an admin port that answers as it is told."""

import asyncio
import contextlib
import json
from collections.abc import Iterator

import pytest

from proxy import remote
from proxy.admin import Admin
from proxy.errors import StartError
from proxy.probe import Address
from tests.test_admin import Proxy

pytestmark = pytest.mark.integration


class Restoring(Proxy):
    """A proxy that is further each time it is looked at."""

    looks: Iterator[str]

    def page(self, path: str) -> str:
        state = next(self.looks)
        row = {"cluster": "locks", "keyspace": "a", "rows": 9, "written": 3, "left": None}
        return json.dumps({"restore": [row | {"state": state}]})

    async def drift(self, query: str) -> str:
        return f"a: 3 compared, 1 stale\n  stale  {query}"


@contextlib.contextmanager
def serving(*looks: str) -> Iterator[Address]:
    proxy = Restoring()
    proxy.looks = iter(looks)
    server = Admin("127.0.0.1", 0, proxy)
    server.start()
    try:
        yield server.address
    finally:
        server.stop()


async def test_a_restore_is_watched_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each change; well only where everything was brought back."""
    monkeypatch.setattr(remote, "LOOK", 0.001)
    for end, well in (("done", True), ("refused", False), ("left", False)):
        lines: list[str] = []
        with serving("waiting", "running", "running", end) as address:
            said = await asyncio.to_thread(remote.restore, address, "a b", lines.append)
        assert said == well
        assert lines == ["restoring keyspace=a+b"] + [
            f"a: {state}, 3 of 9 written" for state in ("waiting", "running", end)
        ]


async def test_drift_is_shown_as_it_was_found() -> None:
    """And is not well where a key differs."""
    lines: list[str] = []
    with serving() as address:
        well = await asyncio.to_thread(
            lambda: remote.drift(address, "a&b", 5, lines.append, repair=True)
        )
    assert not well
    assert lines[0].endswith("keys=5&repair=1&keyspace=a%26b")


async def test_what_the_proxy_refuses_is_said() -> None:
    """In its own words, and nothing is watched."""
    with serving() as address, pytest.raises(StartError, match="no such verb"):
        await asyncio.to_thread(remote._done, address, "/-/other", "POST")
