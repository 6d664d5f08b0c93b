"""A server in a container, for machines that have an engine and no server program.

The last resort of `programs`: used only where neither a wheel nor the machine has a server. The
container shares the network and the server's directory with the machine, so addresses and files
are the same as those of a process. testcontainers removes it when the program that started it is
gone.
"""

import importlib
import importlib.util
import os
import signal
import socket
from typing import Any
from urllib.parse import urlsplit

from proxy.embedded.process import Child, Launch, ServerFailed

# Where an engine listens unless DOCKER_HOST says otherwise.
DEFAULT_ENGINE = "unix:///var/run/docker.sock"

# An engine of this machine answers at once.
ENGINE_TIMEOUT = 2.0  # seconds

_LIBRARY = "testcontainers.core.container"


def child_for(name: str, launch: Launch) -> Child:
    """Return the process, or the container in its place where the launch names an image."""
    return Container(name, launch) if launch.image else Child(name, launch)


def engine_answers() -> bool:
    """Return whether containers can be started here: the library is there and an engine listens."""
    if importlib.util.find_spec("testcontainers") is None:
        return False
    address = urlsplit(os.environ.get("DOCKER_HOST", DEFAULT_ENGINE))
    family = socket.AF_UNIX if address.scheme == "unix" else socket.AF_INET
    where = address.path if address.scheme == "unix" else (address.hostname, address.port)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(ENGINE_TIMEOUT)
        try:
            probe.connect(where)
        except (OSError, TypeError):  # TypeError: an address without a port, such as ssh://
            return False
    return True


class Container(Child):
    """A Child whose process lives in a container."""

    _container: Any = None

    @property
    def pid(self) -> int | None:
        return self._state().get("Pid") or None

    @property
    def exit_code(self) -> int | None:
        state = self._state()
        return None if state.get("Running") else state.get("ExitCode")

    @property
    def running(self) -> bool:
        return bool(self._state().get("Running"))

    def start(self) -> None:
        """Start the container; the first time this fetches the image."""
        launch = self.launch
        if not engine_answers():
            raise ServerFailed(f"cannot start {launch.image}: no container engine answers")
        made = importlib.import_module(_LIBRARY).DockerContainer(launch.image)
        folder = str(launch.directory)
        made = made.with_volume_mapping(folder, folder, "rw").with_command(list(launch.arguments))
        made = made.with_kwargs(
            network_mode="host",
            entrypoint=[],
            working_dir=folder,
            user=f"{os.getuid()}:{os.getgid()}",
        )
        try:
            self._container = made.start().get_wrapped_container()
        except Exception as error:  # the border to a library that lets every kind through
            raise ServerFailed(f"cannot start {launch.image}: {error}") from error

    def send(self, number: signal.Signals) -> None:
        if not self.running:
            return
        if number is signal.SIGSTOP:
            self._container.pause()
        elif number is signal.SIGCONT:
            if self._state().get("Paused"):
                self._container.unpause()
        else:
            self._container.kill(signal=int(number))

    def kill(self) -> None:
        if self._container is not None:
            self._container.remove(force=True)
            self._container = None

    def log_tail(self, lines: int = 15) -> str:
        if self._container is None:
            return ""
        return bytes(self._container.logs(tail=lines)).decode(errors="replace")

    def _state(self) -> dict[str, Any]:
        if self._container is None:
            return {}
        self._container.reload()
        state: dict[str, Any] = self._container.attrs["State"]
        return state
