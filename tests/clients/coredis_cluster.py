"""Sixty everyday operations with coredis, a client for Redis Cluster; prints the results as JSON.

    python -m tests.clients.coredis_cluster 127.0.0.1 6379

It finds the nodes from CLUSTER SLOTS and the keys of a command from COMMAND, splits what goes to
several slots by itself, and pipelines per node.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import coredis
from coredis.exceptions import RedisError

from tests.clients.everyday import plain

Operation = Callable[[Any, str], Any]

# Each is done with keys of three slots.
OPERATIONS: list[Operation] = [
    lambda r, k: r.set(k, "value"),
    lambda r, k: r.get(k),
    lambda r, k: r.append(k, "!"),
    lambda r, k: r.strlen(k),
    lambda r, k: r.getrange(k, 0, 2),
    lambda r, k: r.expire(k, 500),
    lambda r, k: r.persist(k),
    lambda r, k: r.type(k),
    lambda r, k: r.incr(f"n:{k}"),
    lambda r, k: r.incrby(f"n:{k}", 41),
    lambda r, k: r.hset(f"h:{k}", {"name": "Ada", "born": "1815"}),
    lambda r, k: r.hgetall(f"h:{k}"),
    lambda r, k: r.rpush(f"l:{k}", ["one", "two"]),
    lambda r, k: r.lrange(f"l:{k}", 0, -1),
    lambda r, k: r.sadd(f"s:{k}", ["x", "y"]),
    lambda r, k: r.smembers(f"s:{k}"),
    lambda r, k: r.zadd(f"z:{k}", {"a": 1, "b": 2.5}),
    lambda r, k: r.zrange(f"z:{k}", 0, -1, withscores=True),
    lambda r, k: r.lpush(k, ["a list needs no text"]),
    lambda r, k: r.eval("return redis.call('GET', KEYS[1])", keys=[k]),
    lambda r, k: r.mset({f"{k}:1": "1", f"{k}:2": "2"}),
    lambda r, k: r.mget([f"{k}:1", f"{k}:2", "missing"]),
    lambda r, k: r.exists([f"{k}:1", f"{k}:2", "missing"]),
    lambda r, k: _batch(r, k),
    lambda r, k: r.delete([f"{k}:1", f"{k}:2", "missing"]),
]


async def _batch(client: Any, key: str) -> list[Any]:
    async with client.pipeline() as pipeline:
        answers = [
            answer
            for number in range(20)
            for answer in (
                pipeline.set(f"batch:{key}:{number}", number),
                pipeline.get(f"batch:{key}:{number}"),
            )
        ]
    return [await answer for answer in answers]


async def main(host: str, port: str) -> None:
    results = []
    client: Any = coredis.RedisCluster(host, int(port))
    async with client:
        for operation in OPERATIONS:
            for key in ("text", "foo", "bar"):
                try:
                    results.append(plain(await operation(client, key)))
                except RedisError as error:
                    results.append(plain(error))
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
