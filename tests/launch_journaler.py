"""pipeline.journaler, compiling its own kernels alone as it needs them: for tests of the process without the others."""
import sys

from pipeline import journaler
from shm import kernel_cache

if __name__ == "__main__":
    kernel_cache.COMPILER = (sys.executable, "-c", "")
    journaler.main()
