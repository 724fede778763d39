"""A file system that answers ``flock`` and ``fsync`` with an error of choice, by a library loaded before the C library.

What is faked is what the kernel answers, so every layer above it is the real one, in every process of a command.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import pytest

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stand-in")

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <stdio.h>

static int fault(const char *name) { const char *text = getenv(name); return text ? atoi(text) : 0; }

static int is_meant(int fd) {
    const char *part = getenv("FAULT_PATH");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return part == NULL || strstr(path, part) != NULL;
}

int flock(int fd, int operation) {
    int number = fault("FAULT_FLOCK");
    if (number && is_meant(fd)) { errno = number; return -1; }
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}

int fsync(int fd) {
    struct stat status;
    int is_folder = fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
    int number = fault(is_folder ? "FAULT_FSYNC_FOLDER" : "FAULT_FSYNC_FILE");
    if (number && is_meant(fd)) { errno = number; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
"""


def faults(
    folder: Path,
    *,
    flock: str | None = None,
    fsync_file: str | None = None,
    fsync_folder: str | None = None,
    path: str = "",
) -> dict[str, str]:
    """Return the variables under which a process meets these errors (names as ENOLCK) on files whose path holds ``path``."""
    library = folder / "faulty_disk.so"
    if not library.exists():
        source = folder / "faulty_disk.c"
        source.write_text(_SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    names = {"FAULT_FLOCK": flock, "FAULT_FSYNC_FILE": fsync_file, "FAULT_FSYNC_FOLDER": fsync_folder}
    numbers = {name: str(getattr(errno, word)) for name, word in names.items() if word}
    return {"LD_PRELOAD": str(library), **numbers, **({"FAULT_PATH": path} if path else {})}
