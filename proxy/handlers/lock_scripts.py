"""Scripts that lock libraries bring along, and what each of them does: one table.

Used by `lock_runs`. A script on a lock cannot run in Redis, which decides nothing; but the few that
clients have compare the value and then release or extend, and that can be done where it is decided.
White space, comments, case and the kind of quotes do not matter.
"""

import hashlib
import re
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class Does(Enum):
    ACQUIRE = "takes what nobody holds for ARGV[2], with ARGV[1] as its value"
    RELEASE = "gives the lock up"
    EXTEND = "sets its time to ARGV[2]"
    LENGTHEN = "sets its time to ARGV[2], or adds that where ARGV[3] is 0"
    LEFT = "tells how long it lasts"


class Form(NamedTuple):
    """A script: it compares the value of KEYS[1] with ARGV[1] first.

    It answers 1 where it has done something, else 0; of LEFT the time is the reply.
    """

    does: Does
    unit: float = 0.001  # of ARGV[2], in seconds
    each: bool = False  # it is about all KEYS, and answers how many of them


# redis-py's Lock.
_PY = "local token = redis.call('get', KEYS[1]) if not token or token ~= ARGV[1] then return 0 end "
_PY_RELEASE = _PY + "redis.call('del', KEYS[1]) return 1"
_PY_EXTEND = (
    _PY + "local expiration = redis.call('pttl', KEYS[1]) if not expiration then expiration = 0 end"
    " if expiration < 0 then return 0 end local newttl = ARGV[2] if ARGV[3] == '0' then newttl ="
    " ARGV[2] + expiration end redis.call('pexpire', KEYS[1], newttl) return 1"
)
_PY_REACQUIRE = _PY + "redis.call('pexpire', KEYS[1], ARGV[2]) return 1"

# That of Redis' own page about locks, which most libraries have in this form.
_IF = "if redis.call('get', KEYS[1]) == ARGV[1] then "
_ELSE = " else return 0 end"
_RELEASE = _IF + "return redis.call('del', KEYS[1])" + _ELSE
_UNLINK = _IF + "return redis.call('unlink', KEYS[1])" + _ELSE
_EXTEND = _IF + "return redis.call('pexpire', KEYS[1], ARGV[2])" + _ELSE
_EXTEND_SECONDS = _IF + "return redis.call('expire', KEYS[1], ARGV[2])" + _ELSE
_LEFT = _IF + "local pttl = redis.call('pttl', KEYS[1]) return (pttl > 0) and pttl or 0" + _ELSE


def _bare(text: str) -> str:
    """Return a script without what does not matter."""
    without = re.sub(r"--(?:\[\[.*?\]\]|[^\n]*)", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", "", without).replace('"', "'").replace(";", "").lower()


def _digest(text: str) -> str:
    return hashlib.sha1(_bare(text).encode(), usedforsecurity=False).hexdigest()


# By digest; those of node-redlock, versions 4.2 and 5, stand here by nothing else.
_FORMS: Mapping[str, Form] = {
    _digest(_PY_RELEASE): Form(Does.RELEASE),
    _digest(_PY_EXTEND): Form(Does.LENGTHEN),
    _digest(_PY_REACQUIRE): Form(Does.EXTEND),
    _digest(_RELEASE): Form(Does.RELEASE),
    _digest(_UNLINK): Form(Does.RELEASE),
    _digest(_EXTEND): Form(Does.EXTEND),
    _digest(_EXTEND_SECONDS): Form(Does.EXTEND, 1.0),
    _digest(_LEFT): Form(Does.LEFT),
    "f4ff5804413438b225344cea793df441cb292c90": Form(Does.ACQUIRE, each=True),
    "e3bfef2d961bfd59db5714548a385da4d4a56eca": Form(Does.EXTEND, each=True),
    "81e4c483ea051e9d8ca856306380f78372ae5eb6": Form(Does.RELEASE, each=True),
}

# Longer than any of them.
_LONGEST = 2000


def form_of(body: bytes) -> Form | None:
    """Return what a script does to a lock, None for one that is not known."""
    if len(body) > _LONGEST:
        return None
    return _FORMS.get(_digest(body.decode("latin-1")))
