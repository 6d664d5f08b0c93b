"""Sixty everyday operations with redis-py; prints the results as JSON.

    python -m tests.clients.everyday redis://127.0.0.1:6379 {sync|async} {2|3} [--cluster]

The same operations run against a plain Redis and through the proxy, or with the clients for Redis
Cluster against a real one and through the proxy; the outputs must be equal.
"""

import argparse
import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio

# Every operation takes a client of either kind; what it gives is awaited where it must be.
Operation = Callable[[Any], Any]


def _pipeline(client: Any) -> Any:
    # The one for clusters knows no other kind, and refuses to be asked.
    clustered = isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster)
    return client.pipeline() if clustered else client.pipeline(transaction=False)


def _batch(client: Any) -> Any:
    pipeline = _pipeline(client)
    for number in range(20):
        pipeline.set(f"batch:{number}", number)
        pipeline.get(f"batch:{number}")
        pipeline.incr("batch:count")
    return pipeline.execute()


def _failing_batch(client: Any) -> Any:
    pipeline = _pipeline(client)
    pipeline.lpush("text", "a list needs no text")
    pipeline.get("text")
    return pipeline.execute(raise_on_error=False)


# What the client for clusters itself refuses is no RedisError.
FAILURES = (redis.RedisError, redis.exceptions.RedisClusterException)

OPERATIONS: list[Operation] = [
    lambda r: r.ping(),
    lambda r: r.echo("hello"),
    lambda r: r.delete(*(f"batch:{number}" for number in range(20)), "batch:count"),
    lambda r: r.unlink("text", "new", "n", "f", "h", "hn", "l", "l2", "s", "s2", "z", "z2", "bits"),
    lambda r: r.unlink("geo", "log", "visitors", "copy", "bin", "a", "b", "c", "{u}1", "{u}2"),
    lambda r: r.set("text", "value"),
    lambda r: r.get("text"),
    lambda r: r.get("missing"),
    lambda r: r.set("text", "other", nx=True),
    lambda r: r.set("text", "newer", xx=True, get=True),
    lambda r: r.set("new", "short-lived", ex=1000),
    lambda r: r.ttl("new"),
    lambda r: r.persist("new"),
    lambda r: r.expire("new", 500),
    lambda r: r.getex("new", persist=True),
    lambda r: r.append("text", "!"),
    lambda r: r.strlen("text"),
    lambda r: r.getrange("text", 0, 2),
    lambda r: r.set("bin", bytes(range(256))),
    lambda r: r.get("bin"),
    lambda r: r.incr("n"),
    lambda r: r.incrby("n", 41),
    lambda r: r.decr("n"),
    lambda r: r.incrbyfloat("f", 2.5),
    lambda r: r.mset({"a": 1, "b": 2, "c": 3}),
    lambda r: r.mget("a", "b", "missing", "c"),
    lambda r: r.exists("a", "b", "missing", "a"),
    lambda r: r.delete("a", "b", "missing"),
    lambda r: r.getdel("c"),
    lambda r: r.type("text"),
    lambda r: r.hset("h", mapping={"name": "Ada", "born": 1815}),
    lambda r: r.hget("h", "name"),
    lambda r: r.hgetall("h"),
    lambda r: r.hmget("h", "name", "missing"),
    lambda r: r.hincrby("h", "born", 1),
    lambda r: r.hdel("h", "name", "missing"),
    lambda r: r.hexists("h", "name"),
    lambda r: r.rpush("l", "one", "two", "three"),
    lambda r: r.lpush("l", "zero"),
    lambda r: r.lrange("l", 0, -1),
    lambda r: r.lpop("l"),
    lambda r: r.rpop("l", 2),
    lambda r: r.llen("l"),
    lambda r: r.ltrim("l", 0, 10),
    lambda r: r.sadd("s", "x", "y", "z"),
    lambda r: r.smembers("s"),
    lambda r: r.sismember("s", "x"),
    lambda r: r.srem("s", "x"),
    lambda r: r.scard("s"),
    lambda r: r.zadd("z", {"a": 1, "b": 2.5, "c": 3}),
    lambda r: r.zrange("z", 0, -1, withscores=True),
    lambda r: r.zincrby("z", 10, "a"),
    lambda r: r.zrank("z", "a"),
    lambda r: r.zscore("z", "b"),
    lambda r: r.zrangebyscore("z", 2, 3),
    lambda r: r.zpopmin("z"),
    lambda r: r.setbit("bits", 7, 1),
    lambda r: r.bitcount("bits"),
    lambda r: r.pfadd("visitors", "ada", "bob"),
    lambda r: r.pfcount("visitors"),
    lambda r: r.geoadd("geo", (13.4, 52.5, "berlin", 11.6, 48.1, "munich")),
    lambda r: r.geodist("geo", "berlin", "munich", unit="km"),
    lambda r: r.xadd("log", {"event": "start"}, id="1-1"),
    lambda r: r.xrange("log"),
    lambda r: r.xread({"log": "0"}),
    lambda r: r.copy("{u}1", "{u}2"),
    lambda r: r.lpush("text", "a list needs no text"),
    lambda r: r.execute_command("GET"),
    _batch,
    _failing_batch,
]


def plain(value: Any) -> Any:
    """Return a result in a form that JSON can carry and two servers agree on."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, set):
        return sorted(map(plain, value))
    if isinstance(value, dict):
        return sorted([plain(key), plain(item)] for key, item in value.items())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Exception):
        return f"{type(value).__name__}: {value}"
    return value


def run_sync(client: Any) -> list[Any]:
    results = []
    for operation in OPERATIONS:
        try:
            results.append(plain(operation(client)))
        except FAILURES as error:
            results.append(plain(error))
    client.close()
    return results


async def run_async(client: Any) -> list[Any]:
    results = []
    for operation in OPERATIONS:
        try:
            value = operation(client)
            results.append(plain(await value if inspect.isawaitable(value) else value))
        except FAILURES as error:
            results.append(plain(error))
    await client.aclose()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("kind", choices=["sync", "async"])
    parser.add_argument("protocol", type=int, choices=[2, 3])
    parser.add_argument("--cluster", action="store_true")
    options = parser.parse_args()
    if options.kind == "sync":
        kind: Any = redis.RedisCluster if options.cluster else redis.Redis
        results = run_sync(kind.from_url(options.url, protocol=options.protocol))
    else:

        async def run() -> list[Any]:
            kind: Any = redis.asyncio.RedisCluster if options.cluster else redis.asyncio.Redis
            return await run_async(kind.from_url(options.url, protocol=options.protocol))

        results = asyncio.run(run())
    json.dump(results, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
