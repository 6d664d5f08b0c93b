"""The admin port's `/-/explain`: a command in the address, an explanation as text.

    curl 'http://127.0.0.1:9121/-/explain?command=GET+session:1&role=booking'

The rules are laid out once after each reload, in the thread of the visitor who asks first; the
command is judged on the event loop, as every other is, in the time of one command.
"""

import ipaddress
import shlex
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import parse_qs, urlsplit

from proxy.errors import SidecacheError
from proxy.explain import Explainer

PATH: Final = "/-/explain"

# How long the loop may take to come to it.
SECONDS: Final = 4.0

USAGE: Final = "use /-/explain?command=GET+key, with &role=NAME and &protocol=3 where they matter\n"


class Explained(Protocol):
    """Who knows the rules in force."""

    def explainer(self) -> Explainer:
        """Return what explains by the rules in force; called from a thread, and may take a second.

        Raises SidecacheError where the rules cannot be had.
        """


# Has the loop do a verb within so many seconds; returns what to answer.
Run = Callable[[Callable[[object], Coroutine[None, None, str]], float], tuple[HTTPStatus, str]]


def answer(query: str, health: Explained, run: Run) -> tuple[HTTPStatus, str]:
    """Return status and text for the query of an address, whose length the caller has bounded."""
    try:
        fields = parse_qs(query, strict_parsing=True, max_num_fields=3, errors="surrogateescape")
        words = shlex.split(fields.pop("command")[-1])
        role, protocol = fields.pop("role", ["default"])[-1], fields.pop("protocol", ["2"])[-1]
    except (ValueError, KeyError):
        return HTTPStatus.BAD_REQUEST, USAGE
    if fields or not words or protocol not in ("2", "3"):
        return HTTPStatus.BAD_REQUEST, USAGE
    try:
        explainer = health.explainer()
    except SidecacheError as error:
        return HTTPStatus.UNPROCESSABLE_ENTITY, f"{error}\n"
    if role not in explainer.roles:
        there = ", ".join(explainer.roles)
        return HTTPStatus.BAD_REQUEST, f"no such role; there is: {there}\n"
    arguments = [word.encode(errors="surrogateescape") for word in words]

    async def explained(_: object) -> str:
        return "\n".join(explainer.lines(explainer.explain(arguments, role, int(protocol))))

    return run(explained, SECONDS)


def names_this_machine(host: str) -> bool:
    """Return whether a Host header is localhost or an address, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname
        return name == "localhost" or ipaddress.ip_address(name or "") is not None
    except ValueError:
        return False


def is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
