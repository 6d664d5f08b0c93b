"""A primary and its replica, watched by sentinels that replace the primary when it fails.

Used by the tests and benchmarks, as `async with Monitored(...) as servers:`. When it is started,
every sentinel knows the other sentinels and the replica.
"""

from pathlib import Path

from proxy.embedded.node import Node, NodeOptions, quoted
from proxy.embedded.process import EmbeddedError, stop_all
from proxy.embedded.programs import Program
from proxy.embedded.redis import READY_TIMEOUT, Servers, together

# The name that Redis' own documentation gives to the monitored primary.
PRIMARY_NAME = "mymaster"

# Three, of whom two must agree: the smallest number that survives the loss of one.
SENTINELS = 3
QUORUM = 2

# Half of what operators set, so that tests wait less; below a second a busy machine looks dead.
DOWN_AFTER = 2.0  # seconds


class Sentinel(Node):
    """One sentinel: the same program, with a configuration of its own that it rewrites."""

    def __init__(self, name: str, program: Program, directory: Path, primary: Node) -> None:
        super().__init__(name, program, directory, NodeOptions(tls=primary.options.tls))
        self.primary = primary

    def _arguments(self) -> tuple[str, ...]:
        return (*super()._arguments(), "--sentinel")

    def _write_configuration(self) -> None:
        primary, options = self.primary, self.primary.options
        lines = [
            *self._listener_lines(),
            f"sentinel monitor {PRIMARY_NAME} {primary.host} {primary.port} {QUORUM}",
            f"sentinel down-after-milliseconds {PRIMARY_NAME} {int(DOWN_AFTER * 1000)}",
            f"sentinel failover-timeout {PRIMARY_NAME} 10000",
        ]
        if options.password:
            lines.append(f"sentinel auth-pass {PRIMARY_NAME} {quoted(options.password)}")
        if options.user:
            lines.append(f"sentinel auth-user {PRIMARY_NAME} {options.user}")
        self._save_configuration(lines)


class Monitored(Servers):
    """A primary with replicas, and sentinels that watch them under the name `mymaster`."""

    def __init__(
        self, name: str, program: Program, directory: Path, options: NodeOptions | None = None
    ) -> None:
        super().__init__(name, directory)
        self.program = program
        self.options = options or NodeOptions()
        self.sentinels: list[Sentinel] = []

    async def _form(self) -> None:
        primary, replica = (
            Node(
                f"{self.name}-{n}", self.program, self.directory / f"{self.name}-{n}", self.options
            )
            for n in (1, 2)
        )
        self.nodes = [primary, replica]
        await primary.start()
        replica.settings["replicaof"] = f"{primary.host} {primary.port}"
        replica.role = "replica"
        await replica.start()
        self.sentinels = [self._sentinel(number, primary) for number in range(1, SENTINELS + 1)]
        await together(sentinel.start() for sentinel in self.sentinels)
        await self._wait(self._unwatched, READY_TIMEOUT)

    def _sentinel(self, number: int, primary: Node) -> "Sentinel":
        name = f"{self.name}-sentinel-{number}"
        return Sentinel(name, self.program, self.directory / name, primary)

    async def _unwatched(self) -> str | None:
        replication = await self.nodes[1].info("replication")
        if replication["master_link_status"] != "up":
            return f"{self.nodes[1].name} is not in step with its primary"
        for sentinel in self.sentinels:
            flat = await sentinel.ask("SENTINEL", "MASTER", PRIMARY_NAME)
            state = dict(zip(flat[::2], flat[1::2], strict=True))
            others = SENTINELS - 1
            if state["num-slaves"] != "1" or state["num-other-sentinels"] != str(others):
                return f"{sentinel.name} sees {state['num-other-sentinels']} of {others} others"
        return None

    async def primary_address(self) -> tuple[str, int]:
        """Return where the first answering sentinel says that the primary is."""
        for sentinel in self.sentinels:
            if sentinel.running:
                host, port = await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY_NAME)
                return host, int(port)
        raise EmbeddedError(f"no sentinel of {self.name} is running")

    async def refresh(self) -> None:
        """Note who is the primary, as the sentinels see it."""
        _, port = await self.primary_address()
        for node in self.nodes:
            node.role = "primary" if node.port == port else "replica"

    async def stop(self) -> None:
        await stop_all([sentinel.child for sentinel in self.sentinels if sentinel.pid])
        for sentinel in self.sentinels:
            sentinel.release()
        await super().stop()
