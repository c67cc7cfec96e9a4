"""What a benchmark ran on: commit, processor, cores, versions. Figures mean nothing without it."""
import os
import platform
import subprocess
from importlib.metadata import version

from tools.local_exchange import PROJECT


def commit():
    """The commit of the project's sources, with -dirty behind it where they differ from it; None outside of git."""
    try:
        asked = subprocess.run(
            ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True)
    except OSError:
        return None
    return asked.stdout.strip() or None


def figures():
    return {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release(),
            "load_average": round(os.getloadavg()[0], 2),  # of the last minute, before the run: who else is busy
            "python": platform.python_version(), "numba": version("numba"), "tornado": version("tornado")}


def _cpu():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()
