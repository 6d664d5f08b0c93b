"""Scripts of lua/ that the proxy runs for itself, on the connections that clients share.

Always true: a script is sent by its digest, and once in full to a node that does not know it;
whoever asks hears exactly once, an error line where no node could run it.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files

from proxy import errors, wire


class Script:
    """One file of lua/."""

    def __init__(self, name: str) -> None:
        self.body = (files("proxy") / "lua" / f"{name}.lua").read_bytes()
        # Redis knows scripts by this digest; nothing is proven by it.
        self.digest = hashlib.sha1(self.body, usedforsecurity=False).hexdigest().encode()


# How long an answer is waited for, in seconds: a node's own deadline and that of a redirect, which
# end before, are configured; this one ends where they do not.
PATIENCE = 5.0


class Errands:
    """A client of the proxy's own, without a socket."""

    def __init__(self, router: wire.Router, batch: wire.Batch) -> None:
        self._router = router
        self._side = wire.Downstream(router, batch, 0)
        self._loop = asyncio.get_running_loop()

    def run(
        self,
        script: Script,
        cluster: int,
        key: bytes,
        arguments: Sequence[bytes],
        deliver: Callable[[bytes], None],
        others: Sequence[bytes] = (),
    ) -> None:
        """Run a script on the node of its key; deliver gets the reply, at once or later.

        Its other keys have the same slot.
        """
        if cluster >= self._router.slots.clusters:
            deliver(errors.CLUSTERDOWN)
            return
        # A client follows new tables when it has something to say.
        self._side.receive_data(b"", self._loop.time())
        place = self._router.slots.place_of(cluster, key)

        def send(name: bytes, text: bytes, receive: Callable[[bytes], None]) -> None:
            keys = [key, *others]
            frame = wire.pack([name, text, b"%d" % len(keys), *keys, *arguments])
            self._side.submit(place, frame, -1, self._loop.time(), receive, quotes=True)

        def heard(reply: bytes) -> None:
            if reply.startswith(b"-NOSCRIPT"):
                send(b"EVAL", script.body, deliver)
            else:
                deliver(reply)

        send(b"EVALSHA", script.digest, heard)

    async def ask(
        self, script: Script, cluster: int, keys: Sequence[bytes], arguments: Sequence[bytes] = ()
    ) -> bytes:
        """Run a script and return its reply, an error line where none came."""
        return await self._answer(
            lambda deliver: self.run(script, cluster, keys[0], arguments, deliver, keys[1:])
        )

    async def tell(self, place: wire.Location, words: Sequence[bytes]) -> bytes:
        """Send a command to the node of a place; return its reply, or an error line."""
        return await self._answer(lambda deliver: self.post(place, words, deliver))

    def post(
        self, place: wire.Location, words: Sequence[bytes], deliver: Callable[[bytes], None]
    ) -> None:
        """Send a command to the node of a place; deliver gets the reply, at once or later."""
        self._side.receive_data(b"", self._loop.time())
        self._side.submit(place, wire.pack(words), -1, self._loop.time(), deliver)

    async def _answer(self, send: Callable[[Callable[[bytes], None]], None]) -> bytes:
        answer: asyncio.Future[bytes] = self._loop.create_future()

        def deliver(reply: bytes) -> None:
            if not answer.done():
                answer.set_result(reply)

        send(deliver)
        try:
            async with asyncio.timeout(PATIENCE):
                return await answer
        except TimeoutError:
            return errors.TIMEOUT
