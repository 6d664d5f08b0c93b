"""Lead one process' connections somewhere else: how one of several sidecars is cut off.

Nodes of a cluster tell everybody the same addresses. A library in front of `connect` changes the
port for one process alone, which goes on to believe that it speaks to the node itself.
"""

import dataclasses
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from proxy.embedded.process import Child
from proxy.embedded.sidecar import Sidecar

_SOURCE = """
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static unsigned short ports[65536];

__attribute__((constructor)) static void find(void)
{
    const char *at = getenv("TEST_DETOURS");
    unsigned from, to;
    int read;
    while (at && sscanf(at, "%u:%u,%n", &from, &to, &read) == 2) {
        ports[from & 65535] = to;
        at += read;
    }
}

int connect(int file, const struct sockaddr *to, socklen_t size)
{
    struct sockaddr_in other;
    if (to->sa_family == AF_INET && size >= sizeof other) {
        memcpy(&other, to, sizeof other);
        if (ports[ntohs(other.sin_port)])
            other.sin_port = htons(ports[ntohs(other.sin_port)]);
        return syscall(SYS_connect, file, &other, sizeof other);
    }
    return syscall(SYS_connect, file, to, size);
}
"""


def divert(sidecar: Sidecar, ports: Mapping[int, int], folder: Path) -> None:
    """Let a proxy that is not started yet reach the second port of a pair wherever it connects to
    the first."""
    folder.mkdir(parents=True, exist_ok=True)
    source, library = folder / "detour.c", folder / "detour.so"
    source.write_text(_SOURCE)
    subprocess.run(
        [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", str(source), "-o", library],
        check=True, timeout=60,
    )  # fmt: skip
    launch = sidecar.child.launch
    environment = {
        **(launch.environment or os.environ),
        "LD_PRELOAD": str(library),
        "TEST_DETOURS": "".join(f"{one}:{other}," for one, other in ports.items()),
    }
    launch = dataclasses.replace(launch, environment=environment)
    sidecar.child = Child(sidecar.child.name, launch)
