#!/usr/bin/env python3
"""Run an exchange: python3 run_exchange.py [--config FILE] [--data DIR] [--http HOST:PORT] [--check] [--setup]

Needs Python >= 3.10, < 3.14 and nothing else: it makes .venv beside itself, installs the project there, and hands over
to tools/launcher.py, which knows the options. Standard library only, and written so that any Python can read it and be
told that it is the wrong one.
"""
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys

PROJECT = os.path.dirname(os.path.realpath(__file__))
VENV = os.path.join(PROJECT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "installed-for")  # what was installed whole; absent while an installation is under way
OLDEST, TOO_NEW = (3, 10), (3, 14)
UNREACHABLE = (  # what pip says when it cannot reach its index
    "NewConnectionError", "Failed to establish a new connection", "name resolution", "Name or service not known",
    "ConnectTimeout", "timed out", "ProxyError", "SSLError", "Connection refused", "Network is unreachable",
    "Could not find a version", "No matching distribution")


def main():
    if not OLDEST <= sys.version_info[:2] < TOO_NEW:
        sys.exit("run_exchange: this is Python %d.%d, and the exchange needs Python 3.10, 3.11, 3.12 or 3.13: run it"
                 " with one of them, such as python3.11 run_exchange.py" % sys.version_info[:2])
    if not sys.platform.startswith("linux"):
        sys.exit("run_exchange: this is %s, and the exchange runs on Linux" % sys.platform)
    try:
        prepare()
    except OSError as error:
        sys.exit("run_exchange: %s cannot be prepared: %s" % (VENV, error))
    except KeyboardInterrupt:
        sys.exit(130)
    # Isolated, so that no folder of the current directory is taken for one of the project's packages.
    os.execv(VENV_PYTHON, [VENV_PYTHON, "-I", "-m", "tools.launcher"] + sys.argv[1:])


def prepare():
    """.venv with the project and all that it needs; made or mended where it is not so. One start at a time."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # pip leaves compiling to the first import: see install()
    with open(os.path.join(PROJECT, "setup.cfg")) as setup_cfg:
        try:
            fcntl.flock(setup_cfg, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another start prepares .venv; waiting for it ...")
            fcntl.flock(setup_cfg, fcntl.LOCK_EX)
        if read_stamp() == wanted_stamp():
            return
        made = not is_sound()
        if made:
            make_venv()
        if os.path.exists(STAMP):
            os.remove(STAMP)
        failure = install()
        if failure and not made and not is_unreachable(failure):
            say("Making .venv anew, in case it was left half-made ...")
            make_venv()
            failure = install()
        if failure and is_unreachable(failure):
            sys.exit("run_exchange: the package index cannot be reached, or does not have what is needed (see above)."
                     " Check the network; PIP_INDEX_URL names another index, HTTPS_PROXY a proxy")
        if failure:
            sys.exit("run_exchange: the project cannot be installed into %s: pip says why above" % VENV)
        with open(STAMP, "w") as file:
            file.write(wanted_stamp())


def wanted_stamp():
    """Changes when an installation in .venv is out of date: its requirements, its place, its Python."""
    digest = hashlib.sha256()
    for name in ("setup.cfg", "pyproject.toml"):
        with open(os.path.join(PROJECT, name), "rb") as file:
            digest.update(file.read())
    return "%s\n%s\n%s\n" % (digest.hexdigest(), PROJECT, os.path.realpath(VENV_PYTHON))


def read_stamp():
    try:
        with open(STAMP) as file:
            return file.read()
    except IOError:
        return None


def is_sound():
    """Whether .venv was made in this place and has a Python of a right version that can install packages."""
    try:
        with open(os.path.join(VENV, "bin", "pip")) as script:
            if VENV_PYTHON not in script.read(1000):  # moved here: its scripts call the Python of the old place
                return False
        asked = subprocess.run(
            [VENV_PYTHON, "-I", "-c", "import pip, sys; print(*sys.version_info[:2])"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
    except OSError:
        return False
    return asked.returncode == 0 and OLDEST <= tuple(map(int, asked.stdout.split())) < TOO_NEW


def make_venv():
    need_ensurepip()
    say("Making %s ..." % VENV)
    if os.path.isdir(VENV):
        shutil.rmtree(VENV)
    made = subprocess.run([base_python(), "-m", "venv", VENV])
    if made.returncode != 0:
        sys.exit("run_exchange: %s -m venv cannot make %s (see above)" % (base_python(), VENV))


def base_python():
    """The Python that a venv is made from, also where this one runs in a venv."""
    return getattr(sys, "_base_executable", None) or sys.executable


def need_ensurepip():
    """Debian splits ensurepip, which a venv needs, from its Python: install it as root, or say how."""
    if has_ensurepip():
        return
    package = "python3-venv"
    if os.path.realpath(base_python()) != os.path.realpath("/usr/bin/python3"):
        package = "python%d.%d-venv" % sys.version_info[:2]
    apt_get = shutil.which("apt-get")
    if apt_get is None:
        sys.exit("run_exchange: %s has no ensurepip module, which making .venv needs: install the package of your"
                 " system that has it" % base_python())
    if os.geteuid() != 0:
        sys.exit("run_exchange: %s has no ensurepip module, which making .venv needs. Install it, then start again:"
                 "\n  sudo apt-get install %s" % (base_python(), package))
    say("Installing %s, which making .venv needs ..." % package)
    apt_install(apt_get, package)
    if not has_ensurepip():
        sys.exit("run_exchange: apt-get could not install %s (see above)" % package)


def apt_install(apt_get, package):
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    subprocess.run([apt_get, "update", "-q"], env=environment)
    subprocess.run([apt_get, "install", "-q", "-y", "--no-install-recommends", package], env=environment)


def has_ensurepip():
    asked = subprocess.run([base_python(), "-c", "import ensurepip; ensurepip.version()"], stderr=subprocess.DEVNULL)
    return asked.returncode == 0


def install():
    """Install the project into .venv; returns what pip complained of, or "" where it is done.

    Without compiling: half of the time went into byte code of modules that nothing imports.
    """
    say("Installing the exchange and the packages it needs into .venv ...")
    pip = subprocess.Popen(
        [VENV_PYTHON, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--retries", "2", "--quiet",
         "--no-compile", "--progress-bar", "on" if sys.stdout.isatty() else "off", "--editable", PROJECT],
        stderr=subprocess.PIPE, universal_newlines=True)
    said = []
    for line in pip.stderr:
        sys.stderr.write(line)
        said.append(line)
    return "".join(said) or "pip" if pip.wait() != 0 else ""


def is_unreachable(failure):
    return any(words in failure for words in UNREACHABLE)


def say(text):
    print(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
