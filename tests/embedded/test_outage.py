"""The story of an outage: its books. It is played by tests/test_demo.py."""

import io
from collections import Counter
from pathlib import Path

import pytest

from proxy.embedded.board import Board
from proxy.embedded.node import Node
from proxy.embedded.outage import Act, Scene, play, restored_of, sources_of
from proxy.embedded.process import EmbeddedError
from proxy.embedded.programs import Program
from proxy.embedded.redis import Cluster
from proxy.embedded.sidecar import Sidecar

PAGE = """\
# TYPE sidecache_requests_total counter
sidecache_requests_total{keyspace="event",command="hash",outcome="ok"} 100.0
sidecache_requests_total{keyspace="event",command="hash",outcome="error"} 2.0
sidecache_requests_total{keyspace="venue",command="string",outcome="ok"} 50.0
sidecache_requests_total{keyspace="session",command="hash",outcome="ok"} 7.0
sidecache_origin_answers_total{keyspace="event",source="origin"} 20.0
sidecache_origin_answers_total{keyspace="venue",source="none"} 1.0
sidecache_origin_answers_total{keyspace="venue",source="gutter"} 30.0
sidecache_origin_answers_total{keyspace="venue",source="stale"} 4.0
sidecache_origin_answers_total{keyspace="venue",source="redis"} 3.0
sidecache_origin_answers_total{keyspace="event",source="error"} 2.0
sidecache_restored_keys_total{cluster="locks"} 40.0
sidecache_restored_keys_total{cluster="cache"} 2.0
"""


def test_what_nobody_else_has_answered_was_answered_by_redis() -> None:
    """Requests of the story's keyspaces less what came from elsewhere; "no row" is PostgreSQL's."""
    found = sources_of(PAGE, frozenset(("event", "venue")))
    assert found == Counter(redis=95, origin=21, gutter=30, stale=4, error=2)


def test_restored_keys_are_those_of_all_clusters() -> None:
    """A proxy that restores nothing has none."""
    assert restored_of(PAGE) == 42
    assert restored_of("") == 0


def test_an_act_is_a_row_of_figures() -> None:
    """Sources, errors, p50 and p99 in milliseconds, in the order of the summary's head."""
    act = Act("Redis works")
    act.heard.latencies += [0.001] * 99 + [0.5]
    act.heard.errors = 3
    act.sources.update(redis=1200, origin=7)
    assert act.row().split() == ["Redis", "works", "1,200", "7", "0", "0", "0", "3", "1.00", "1.00"]


@pytest.mark.integration
async def test_nodes_of_somebody_else_are_not_killed(
    proxy: Sidecar, redis_binary: Program, tmp_path: Path
) -> None:
    """The story does not begin with a node that was not started here."""
    stranger = Cluster("cache", redis_binary, tmp_path)
    stranger.nodes = [Node("cache-1", redis_binary, tmp_path, stranger.options)]
    screen = io.StringIO()
    with pytest.raises(EmbeddedError, match="cache are not ours to kill"):
        await play(Scene(proxy, (stranger,), "postgresql://nobody@127.0.0.1:1/x"), Board(screen))
    assert not screen.getvalue()


@pytest.mark.integration
async def test_a_database_that_is_lost_ends_the_story(proxy: Sidecar) -> None:
    """What nobody has killed must be there, else the error says what is not."""
    with pytest.raises(EmbeddedError, match="the story cannot go on"):
        await play(Scene(proxy, (), "postgresql://nobody@127.0.0.1:1/x"), Board(io.StringIO()))
