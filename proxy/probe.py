"""A question to the admin port of a running proxy, as a probe or the command line asks it.

Used by `__main__` and `remote`. Imports next to nothing, because each probe pays for it. Always
true: an answer has a deadline and a longest length.
"""

import socket

from proxy.errors import ConfigError, StartError

# Where the admin port is when nobody says otherwise, as in the settings.
DEFAULT: str = "127.0.0.1:9121"

# How long an answer may take, in seconds, where nobody says otherwise.
QUESTION = 10.0

# No page that is asked for here is longer.
LONGEST = 1 << 20

Address = tuple[str, int]


def address_of(text: str) -> Address:
    """Return where HOST:PORT is. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{text}: expects HOST:PORT, such as {DEFAULT}")
    # Whoever listens everywhere is asked here.
    host = host.strip("[]")
    host = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return host, int(port)


def ask(
    address: Address, path: str, method: str = "GET", timeout: float = QUESTION
) -> tuple[int, str]:
    """Return status and text of an answer. Raises StartError where nobody answers."""
    host, port = address
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = b""
    try:
        with socket.create_connection(address, timeout) as connection:
            connection.sendall(request.encode("ascii", "replace"))
            while len(answer) < LONGEST and (piece := connection.recv(65536)):
                answer += piece
    except OSError as error:
        raise StartError(
            f"the admin port {host}:{port} does not answer: {error.strerror or error}; "
            "is the proxy running, and is --admin or SIDECACHE_ADMIN its address?"
        ) from None
    head, _, body = answer.decode("utf-8", "replace").partition("\r\n\r\n")
    status = head.split()[1:2]
    return int(status[0]) if status and status[0].isdigit() else 0, body.strip() or head
