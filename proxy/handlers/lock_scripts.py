"""Scripts that lock libraries bring along, and what each of them does: one table.

Used by `locks`. A script on a lock cannot run in Redis, which decides nothing; but the few that
clients have compare the value and then release or extend, and that can be done where it is decided.
White space, case and the kind of quotes do not matter.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class Does(Enum):
    RELEASE = "gives the lock up"
    EXTEND = "sets its time to ARGV[2]"
    LENGTHEN = "sets its time to ARGV[2], or adds that where ARGV[3] is 0"
    LEFT = "tells how long it lasts"


class Form(NamedTuple):
    """A script: it compares the value of KEYS[1] with ARGV[1] first."""

    does: Does
    hit: int  # the reply where they are equal; of LEFT the time is the reply
    miss: int
    unit: float = 0.001  # of ARGV[2], in seconds


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

# node-redlock, for one key or several: it counts those that it has changed.
_EACH = "local count = 0 for i, key in ipairs(KEYS) do if redis.call('get', key) == ARGV[1] then "
_REST = " count = count + 1 end end return count"
_RELEASE_EACH = _EACH + "redis.pcall('del', key)" + _REST
_EXTEND_EACH = _EACH + "redis.call('set', key, ARGV[1], 'PX', ARGV[2])" + _REST


def _bare(text: str) -> str:
    """Return a script without what does not matter."""
    without = re.sub(r"--[^\n]*", "", text)
    return re.sub(r"\s+", "", without).replace('"', "'").replace(";", "").lower()


_FORMS: Mapping[str, Form] = {
    _bare(text): form
    for text, form in {
        _PY_RELEASE: Form(Does.RELEASE, 1, 0),
        _PY_EXTEND: Form(Does.LENGTHEN, 1, 0),
        _PY_REACQUIRE: Form(Does.EXTEND, 1, 0),
        _RELEASE: Form(Does.RELEASE, 1, 0),
        _UNLINK: Form(Does.RELEASE, 1, 0),
        _EXTEND: Form(Does.EXTEND, 1, 0),
        _EXTEND_SECONDS: Form(Does.EXTEND, 1, 0, 1.0),
        _LEFT: Form(Does.LEFT, 1, 0),
        _RELEASE_EACH: Form(Does.RELEASE, 1, 0),
        _EXTEND_EACH: Form(Does.EXTEND, 1, 0),
    }.items()
}

# Longer than any of them.
_LONGEST = 2000


def form_of(body: bytes) -> Form | None:
    """Return what a script does to a lock, None for one that is not known."""
    if len(body) > _LONGEST:
        return None
    return _FORMS.get(_bare(body.decode("latin-1")))
