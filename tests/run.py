#!/usr/bin/env python3
"""Set up what the tests need and run them all: python3 tests/run.py [arguments for pytest]

Makes .venv like run_exchange.py does, adds the tests' packages, checks the style, compiles the kernels, runs pytest.
Standard library only until then.
"""
import os
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


def main():
    if not run_exchange.OLDEST <= sys.version_info[:2] < run_exchange.TOO_NEW:
        sys.exit("tests/run.py needs Python 3.10, 3.11, 3.12 or 3.13; this is %d.%d" % sys.version_info[:2])
    run_exchange.prepare()
    install_test_packages()
    subprocess.run([PYTHON, "-m", "ruff", "check", "--quiet", PROJECT], check=True)
    arguments = sys.argv[1:] or ["-q", "--durations=15"]
    sys.exit(subprocess.run([PYTHON, "-m", "pytest", *arguments], cwd=PROJECT).returncode)


if __name__ == "__main__":
    main()
