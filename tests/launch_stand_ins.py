"""tools/launcher.py with stand-ins in place of the processes that hold the exchange's state, and without kernels.

`python tests/launch_stand_ins.py [the launcher's options]`: for tests of starting, watching and stopping.
"""
import re
import sys
from pathlib import Path

from shm import kernel_cache
from tools import launcher, supervisord_conf

STAND_IN = Path(__file__).with_name("stand_in.py")
COMPILER = "from shm.kernel_cache import progress_line\nprogress_line(0, 2, 'first')\nprogress_line(1, 2, 'second')"


def conf_text():
    """supervisord.conf with the stand-ins; the watcher is the real one."""
    return re.sub(r"-m (?:pipeline|gateways)\.(journaler|matcher|http|binary|snapshotter)",
                  lambda found: f'"{STAND_IN}" {found.group(1).replace("http", "gateway")}',
                  supervisord_conf.SOURCE.read_text(encoding="utf-8"))


def main():
    data = Path(sys.argv[sys.argv.index("--data") + 1])
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    source = data / "stand-ins.conf"
    source.write_text(conf_text(), encoding="utf-8")
    supervisord_conf.SOURCE = source
    kernel_cache.COMPILER = (sys.executable, "-c", COMPILER)
    sys.exit(launcher.main())


if __name__ == "__main__":
    main()
