"""Where PostgreSQL is."""

from proxy.database import Database
from proxy.secret import Secret


def test_every_url_is_a_secret_that_logs_must_not_show() -> None:
    """Those of replicas and of leaders too."""
    database = Database(Secret("a"), Secret("b"), (Secret("c"),))
    assert [url.reveal() for url in database.urls] == ["a", "b", "c"]
