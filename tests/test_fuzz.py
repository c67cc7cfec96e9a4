"""The fuzz targets, for a moment: from the same seed each time. The long run: see tests/fuzz."""
import subprocess
import sys

import pytest

from tests.launched import ROOT

pytest.importorskip("atheris", reason="atheris, which guides the fuzzing, is not built for this machine")


@pytest.mark.parametrize("target", ["body", "envelope", "http"])
def test_a_target_holds_for_the_seeds_and_some_thousand_inputs_made_of_them(target, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, "-seed=1", "-runs=8000", f"-artifact_prefix={tmp_path}/"],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert ended.returncode == 0 and "Done 8000 runs" in ended.stderr, ended.stdout + ended.stderr
