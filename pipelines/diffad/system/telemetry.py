"""Libraries that report to their makers unless they are told not to."""

import os

# Of ONNX Runtime, which opens a session with its maker as it is imported, and of NNCF.
REFUSALS = ("ORT_DISABLE_TELEMETRY", "NNCF_CI")


def refuse_telemetry() -> None:
    """Keeps them from it, before they are imported: no call goes out that the user did not ask for."""
    for name in REFUSALS:
        os.environ.setdefault(name, "1")
