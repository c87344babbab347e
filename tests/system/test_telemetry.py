"""No library reports to its maker."""

import os
import subprocess
import sys

import pytest

IMPORTS = {
    "diffad": "import diffad; import onnxruntime",  # diffusers, which imports it, comes later
    "diffad.runtime": "import diffad.runtime.engines; import onnxruntime",
}


@pytest.mark.parametrize("name", IMPORTS)
def test_onnx_runtime_opens_no_session_with_its_maker(name, tmp_path):
    """Else it leaves a file of the session in the folder of temporary files."""
    pytest.importorskip("onnxruntime")
    environment = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "NNCF_CI")}
    run = [sys.executable, "-c", IMPORTS[name]]
    subprocess.run(run, env={**environment, "TMPDIR": str(tmp_path)}, check=True, timeout=120)
    assert not (tmp_path / ".ses").exists()
