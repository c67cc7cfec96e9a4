import os
import sys
import tempfile
from pathlib import Path

os.environ["NUMBA_DISABLE_JIT"] = "1"

import atheris

from tests.fuzz import interpreted  # noqa: F401  before everything that has kernels

with atheris.instrument_imports(include=["gateways"]):
    from tests.fuzz.targets import TARGETS, seeds


def main():
    names = sorted(vars(TARGETS))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"python -m tests.fuzz TARGET [options of libFuzzer], TARGET one of: {', '.join(names)}")
    target = vars(TARGETS)[sys.argv.pop(1)]
    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    with tempfile.TemporaryDirectory() as corpus:
        if not any(map(os.path.isfile, given)):
            for number, seed in enumerate(seeds(target)):
                Path(corpus, f"seed-{number}").write_bytes(seed)
            sys.argv.append(corpus)
        atheris.Setup(sys.argv, target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
