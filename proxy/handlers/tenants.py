"""Whom a client may hear of: those who share its user, or everybody for the role of that name.

CLIENT, ACL, SLOWLOG and MONITOR tell about connections, users and what they send. One tenant learns
nothing of another from them; who runs the proxy gives some user the role `admin`, which a policy
file describes like any other.
"""

from collections.abc import Iterator

from proxy.config import User
from proxy.handlers import Session

ADMIN_ROLE = "admin"


def sees(session: Session, user: str) -> bool:
    """Return whether a client may hear of a user and its connections."""
    return session.downstream.role_name == ADMIN_ROLE or user == session.user


def visible_users(session: Session) -> Iterator[User]:
    return (user for user in session.server.config.users if sees(session, user.name))
