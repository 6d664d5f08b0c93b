"""A real primary under real sentinels."""

import pytest

from proxy.embedded.node import NodeOptions
from proxy.embedded.process import temporary_directory, wait_until
from proxy.embedded.programs import Program
from proxy.embedded.sentinel import DOWN_AFTER, Monitored

pytestmark = pytest.mark.integration


async def test_sentinels_know_the_primary_and_replace_it_when_it_dies(
    redis_binary: Program,
) -> None:
    """Ready means that they can act: a killed primary's replica becomes the primary."""
    options = NodeOptions(user="app", password="a secret")
    with temporary_directory("sidecache-test-") as directory:
        async with Monitored("mon", redis_binary, directory, options) as servers:
            primary, replica = servers.nodes
            assert await servers.primary_address() == (primary.host, primary.port)
            primary.kill()

            async def unmoved() -> str | None:
                address = await servers.primary_address()
                return None if address[1] == replica.port else "still the dead one"

            await wait_until(unmoved, DOWN_AFTER * 5, [replica.child])
            await servers.refresh()
            assert servers.primaries == [replica]
    assert not any(node.running for node in (*servers.nodes, *servers.sentinels))
