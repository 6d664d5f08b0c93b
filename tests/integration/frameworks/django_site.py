"""Django's Redis cache backend and its cached sessions, with default settings but the URL."""

import sys

import django
from django.conf import settings


def main(url: str) -> None:
    settings.configure(
        CACHES={"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache",
                            "LOCATION": url}},
        SESSION_ENGINE="django.contrib.sessions.backends.cache",
    )  # fmt: skip
    django.setup()
    values()
    counters()
    sessions()
    print("done", flush=True)


def values() -> None:
    from django.core.cache import cache

    assert cache.get("missing", "default") == "default"
    cache.set("one", {"a": [1, 2]}, 60)
    assert cache.get("one") == {"a": [1, 2]}
    assert cache.add("one", 2) is False
    assert cache.add("lock", "me", 30) is True
    many = {f"many:{n}": n for n in range(50)}
    assert cache.set_many(many, 60) == []
    assert cache.get_many([*many, "missing"]) == many
    cache.delete_many(list(many)[:25])
    assert cache.get_many(many) == dict(list(many.items())[25:])
    assert cache.touch("one", 90)
    assert cache.has_key("one")
    assert cache.get_or_set("made", lambda: 7) == 7
    assert cache.delete("one")
    cache.set("one", 1, version=2)
    assert cache.get("one") is None


def counters() -> None:
    from django.core.cache import cache

    cache.set("count", 1)
    assert cache.incr("count") == 2
    assert cache.decr("count", 2) == 0
    try:
        cache.incr("nothing")
    except ValueError:
        return
    raise AssertionError("a counter that is not there was counted up")


def sessions() -> None:
    from django.contrib.sessions.backends.cache import SessionStore

    session = SessionStore()
    session["user"] = 7
    session.save()
    again = SessionStore(session_key=session.session_key)
    assert again["user"] == 7
    again.flush()
    assert not session.exists(session.session_key)


if __name__ == "__main__":
    main(sys.argv[1])
