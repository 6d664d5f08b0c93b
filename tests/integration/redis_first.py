"""The lock that many write: Redis decides, and while it is away PostgreSQL does.

A stand-in, to see that the proof finds what is wrong with it: two who see Redis differently, or a
Redis that has forgotten, give one seat to two people.
"""

import time
from typing import Any

import asyncpg
import hiredis

from tests.integration.rig import Caller, Word, is_error

RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])"""
TAKE = """
UPDATE seat_booking_state SET status = 'locked', locked_by = $3, lock_token = $4,
       locked_until = clock_timestamp() + $5::float * interval '1 millisecond'
 WHERE event_id = $1 AND seat_id = $2
   AND (status = 'available' OR locked_until < clock_timestamp()) RETURNING 1"""
GIVE = """
UPDATE seat_booking_state SET status = 'available'
 WHERE event_id = $1 AND seat_id = $2 AND status = 'locked' AND lock_token = $3 RETURNING 1"""


class RedisFirst:
    """Stands for a connection to a proxy, and decides here."""

    def __init__(self, redis: Caller, database: "asyncpg.Pool[Any]", milliseconds: int) -> None:
        self.redis = redis
        self.database = database
        self.milliseconds = milliseconds

    async def call(self, *words: Word) -> Any:
        name, event, seat, *rest = [*map(str, words), ""]
        if name == "SEAT.ACQUIRE":
            token = time.time_ns()
            got = await self._acquire(event, seat, rest[0], token)
            told = (b"outcome", b"acquired", b"token", token, b"expires_in_ms", self.milliseconds)
            return list(told) if got else [b"outcome", b"held"]
        if name == "SEAT.RELEASE":
            given = await self._release(event, seat, f"{rest[0]}:{rest[1]}", int(rest[1]))
            return [b"outcome", b"released" if given else b"lost"]
        return hiredis.ReplyError("ERR not offered")  # errors are values, as of a `Caller`

    async def _acquire(self, event: str, seat: str, owner: str, token: int) -> bool:
        key, value = f"guess:{event}:{seat}", f"{owner}:{token}"
        reply = await self.redis.call("SET", key, value, "NX", "PX", self.milliseconds)
        if is_error(reply):
            values = (event, seat, owner, token, self.milliseconds)
            return bool(await self.database.fetchval(TAKE, *values))
        return reply is not None

    async def _release(self, event: str, seat: str, value: str, token: int) -> bool:
        reply = await self.redis.call("EVAL", RELEASE, 1, f"guess:{event}:{seat}", value)
        if not is_error(reply) and reply:
            return True
        return bool(await self.database.fetchval(GIVE, event, seat, token))
