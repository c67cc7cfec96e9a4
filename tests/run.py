#!/usr/bin/env python3
"""Set up what the tests need and run them all: python3 tests/run.py [arguments for pytest]

Makes .venv like run_exchange.py does, adds the tests' packages and wrk, checks the style, compiles the kernels, runs
pytest. Standard library only until then.
"""
import os
import shutil
import subprocess
import sys

PROJECT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(0, PROJECT)

import run_exchange  # noqa: E402

PYTHON = run_exchange.VENV_PYTHON
STAMP = os.path.join(run_exchange.VENV, "tests-installed-for")


def install_test_packages():
    """The extras that setup.cfg names `test`, where they are not there or were for another setup.cfg."""
    wanted = run_exchange.wanted_stamp()
    if os.path.exists(STAMP):
        with open(STAMP) as file:
            if file.read() == wanted:
                return
    subprocess.run([PYTHON, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable",
                    PROJECT + "[test]"], check=True)
    with open(STAMP, "w") as file:
        file.write(wanted)


def install_wrk():
    """wrk, which makes the load of the benchmarks; where it cannot be had, say so: their tests are skipped then."""
    if shutil.which("wrk"):
        return
    apt_get = shutil.which("apt-get")
    remedy = "install the package of your system that has it"
    if apt_get and os.geteuid() == 0:
        run_exchange.say("Installing wrk, which the tests of the benchmarks need ...")
        run_exchange.apt_install(apt_get, "wrk")
        remedy = "apt-get could not install it (see above)"
    elif apt_get:
        remedy = "install it with: sudo apt-get install wrk"
    if not shutil.which("wrk"):
        run_exchange.say("The tests that need wrk are skipped, as it is missing: %s" % remedy)


def main():
    if not run_exchange.OLDEST <= sys.version_info[:2] < run_exchange.TOO_NEW:
        sys.exit("tests/run.py needs Python 3.10, 3.11, 3.12 or 3.13; this is %d.%d" % sys.version_info[:2])
    run_exchange.prepare()
    install_test_packages()
    install_wrk()
    subprocess.run([PYTHON, "-m", "ruff", "check", "--quiet", PROJECT], check=True)
    arguments = sys.argv[1:] or ["-q", "--durations=15"]
    sys.exit(subprocess.run([PYTHON, "-m", "pytest", *arguments], cwd=PROJECT).returncode)


if __name__ == "__main__":
    main()
