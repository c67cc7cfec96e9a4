"""The configuration of supervisord for one data directory: supervisord.conf of the project's root, which a system
supervisord can run as it is, with other paths and numbers. It is the only list of the exchange's processes.
"""
import configparser
import os
import pwd
import re
import stat
import sys
from contextlib import contextmanager
from pathlib import Path

from shm.process import memory_id

PROJECT = Path(__file__).resolve().parents[1]
SOURCE = PROJECT / "supervisord.conf"
SOCKET_PATH_BYTES_MAX = 107 - len(".12345678")  # supervisord binds it with its process id added


class Unrenderable(Exception):
    """This data directory cannot be written into a supervisord.conf; the text says why."""


@contextmanager
def control_socket(data):
    """A path for supervisord's control socket: in the data directory; where that is too deep for a socket's path, in a
    private folder of /tmp, removed in the end.
    """
    path = data / "run" / "supervisor.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        path.unlink(missing_ok=True)  # left by a killed supervisord
        yield path
        return
    folder = Path("/tmp") / f"exchange-{os.geteuid()}-{memory_id(data).hex[:12]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise Unrenderable(f"{folder} is not a folder of this user alone: remove it, or choose a shorter --data DIR")
    path = folder / "supervisor.sock"
    path.unlink(missing_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        folder.rmdir()


def write(path, control, *, config, data, gateways, binary_gateways):
    """Make the file `path`, for this user alone: the processes of `data` (all paths absolute)."""
    text = render(control, config=config, data=data, gateways=gateways, binary_gateways=binary_gateways)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def render(control, *, config, data, gateways, binary_gateways):
    """The text of the file: `control` is supervisord's socket."""
    paths = {                  # the longer before those that they begin with
        "%(here)s/data/run/supervisor.sock": str(control),
        "%(here)s/data": str(data),
        "%(here)s/exchange.toml": str(config),
        "%(here)s/.venv/bin/python": sys.executable,
        "%(here)s": str(PROJECT),
    }
    for path in paths.values():
        if re.search(r"[\r\n%]|\s[;#]", path):
            raise Unrenderable(f"{path!r} has a line break, a % or a blank before ; or #: supervisord cannot take it")
    known = re.compile("|".join(map(re.escape, paths)))

    def placed(value, quoted):
        def path_of(words):
            path = paths[words.group()]
            return re.sub(r'(["\\])', r"\\\1", path) if quoted else path
        return known.sub(path_of, value)

    parser = configparser.RawConfigParser()
    parser.read_string(SOURCE.read_text(encoding="utf-8"))
    for section in parser.sections():
        for key, value in parser.items(section):
            parser.set(section, key, placed(value, quoted=key == "command"))
    parser.set("program:gateway", "numprocs", str(gateways))
    parser.set("program:binary", "numprocs", str(binary_gateways))
    own = {
        "logfile": placed("%(here)s/data/log/supervisord.log", quoted=False), "logfile_maxbytes": "10MB",
        "logfile_backups": "5", "pidfile": placed("%(here)s/data/run/supervisord.pid", quoted=False), "umask": "077",
    }
    if os.geteuid() == 0:
        own["user"] = pwd.getpwuid(0).pw_name  # said, so that supervisord does not warn of it
    for key, value in own.items():
        parser.set("supervisord", key, value)
    lines = []
    for section in parser.sections():
        items = (f"{key} = {value}".replace("\n", "\n    ") for key, value in parser.items(section))
        lines += [f"[{section}]", *items, ""]
    return "\n".join(lines)
