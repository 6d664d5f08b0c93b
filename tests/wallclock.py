"""A wall clock that a test can set for one process: what it takes for the time of day jumps.

Clocks that only go forward are left alone, as they are when somebody sets a machine's clock.
"""

import dataclasses
import mmap
import os
import struct
import subprocess
from pathlib import Path

from proxy.embedded.process import Child
from proxy.embedded.sidecar import Sidecar

_SOURCE = """
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long none = 0, *ahead = &none; /* seconds, shared with the test */

__attribute__((constructor)) static void find(void)
{
    const char *name = getenv("TEST_WALL_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED)
        ahead = at;
    if (file >= 0)
        close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += *ahead;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
"""


class WallClock:
    """The wall clock of a proxy that is not started yet; it goes right until it is set."""

    def __init__(self, sidecar: Sidecar, folder: Path) -> None:
        source, library, self._file = (folder / name for name in ("w.c", "w.so", "clock"))
        source.write_text(_SOURCE)
        subprocess.run(
            [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", str(source), "-o", library],
            check=True, timeout=60,
        )  # fmt: skip
        self._file.write_bytes(struct.pack("l", 0))
        launch = sidecar.child.launch
        environment = {
            **(launch.environment or os.environ),
            "LD_PRELOAD": str(library),
            "TEST_WALL_CLOCK": str(self._file),
        }
        launch = dataclasses.replace(launch, environment=environment)
        sidecar.child = Child(sidecar.child.name, launch)

    def set_ahead(self, seconds: int) -> None:
        """Let the process see the time that it is in so many seconds, or was before."""
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
            shared[:] = struct.pack("l", seconds)
