"""Scripts that lock libraries bring along; those of Node.js run in tests/clients/test_locks.py."""

import pytest
from redis.asyncio.lock import Lock as AsyncLock
from redis.lock import Lock

from proxy.handlers.lock_scripts import Does, form_of

# pottery's Redlock.
POTTERY = {
    Does.LEFT: """
            if redis.call('get', KEYS[1]) == ARGV[1] then
                local pttl = redis.call('pttl', KEYS[1])
                return (pttl > 0) and pttl or 0
            else
                return 0
            end
        """,
    Does.EXTEND: """
            if redis.call('get', KEYS[1]) == ARGV[1] then
                return redis.call('pexpire', KEYS[1], ARGV[2])
            else
                return 0
            end
        """,
    Does.RELEASE: """
            if redis.call('get', KEYS[1]) == ARGV[1] then
                return redis.call('del', KEYS[1])
            else
                return 0
            end
        """,
}

# python-redis-lock: it answers 0 where it has done it, and signals on a second key.
OTHERS_EXTEND = b"""
    if redis.call("get", KEYS[1]) ~= ARGV[1] then
        return 1
    elseif redis.call("ttl", KEYS[1]) < 0 then
        return 2
    else
        redis.call("expire", KEYS[1], ARGV[2])
        return 0
    end
"""


@pytest.mark.parametrize("lock", [Lock, AsyncLock])
def test_those_of_redis_py(lock: type[Lock]) -> None:
    """Release, extend and reacquire are known, as the installed version has them."""
    release = form_of(lock.LUA_RELEASE_SCRIPT.encode())
    extend = form_of(lock.LUA_EXTEND_SCRIPT.encode())
    again = form_of(lock.LUA_REACQUIRE_SCRIPT.encode())
    assert release is not None
    assert extend is not None
    assert again is not None
    assert (release.does, extend.does, again.does) == (Does.RELEASE, Does.LENGTHEN, Does.EXTEND)
    assert not any(form.each for form in (release, extend, again))


@pytest.mark.parametrize("does", list(POTTERY))
def test_those_of_pottery(does: Does) -> None:
    """They are known with their indents, and with double quotes and a semicolon as well."""
    for text in (POTTERY[does], POTTERY[does].replace("'", '"').replace(")\n", ");\n")):
        form = form_of(text.encode())
        assert form is not None
        assert (form.does, form.unit) == (does, 0.001)


@pytest.mark.parametrize(
    "comment", ["--[[\n  KEYS[1] the lock\n]]\n", "-- KEYS[1]: the lock\n", "--[[]]--[[ a ]]\n"]
)
def test_comments_do_not_matter(comment: str) -> None:
    """Neither to the end of the line nor over several; but what stands behind one does."""
    form = form_of((comment + POTTERY[Does.RELEASE] + comment).encode())
    assert form is not None
    assert form.does is Does.RELEASE
    assert form_of((comment + "local x " + POTTERY[Does.RELEASE]).encode()) is None
    assert form_of(("--[[" + POTTERY[Does.RELEASE] + "]]").encode()) is None


def test_times_in_seconds() -> None:
    """EXPIRE in the place of PEXPIRE means seconds."""
    form = form_of(POTTERY[Does.EXTEND].replace("pexpire", "EXPIRE").encode())
    assert form is not None
    assert form.unit == 1.0


@pytest.mark.parametrize(
    "body",
    [
        b"", b"return 1", b"return redis.call('del', KEYS[1])", b"\xff\x00", OTHERS_EXTEND,
        POTTERY[Does.RELEASE].replace("==", "~=").encode(),
        POTTERY[Does.RELEASE].replace("KEYS[1]", "KEYS[2]").encode(),
        POTTERY[Does.RELEASE].encode() + b" redis.call('del', 'x')",
        POTTERY[Does.RELEASE].encode() + b" " * 3000,
    ],
)  # fmt: skip
def test_what_is_not_known(body: bytes) -> None:
    """A script that does more, less or otherwise is none of them, whatever bytes it has."""
    assert form_of(body) is None
