"""Every handler by the name of its command's row; b"" answers what has no row.

The session looks up here. A test demands one handler for every row that can become a Request.
"""

from proxy.handlers import (
    Handler,
    clients,
    connection,
    fanout,
    guarded,
    introspection,
    local,
    renamed,
)

HANDLERS: dict[bytes, Handler] = {
    **connection.HANDLERS,
    **clients.HANDLERS,
    **local.HANDLERS,
    **introspection.HANDLERS,
    **guarded.HANDLERS,
    **fanout.HANDLERS,
    **renamed.HANDLERS,
}
