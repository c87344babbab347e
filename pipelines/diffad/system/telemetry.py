"""Libraries that report to their makers unless they are told not to."""

import os

# Of ONNX Runtime, which opens a session with its maker as it is imported, of NNCF, and of Ray.
REFUSALS = {"ORT_DISABLE_TELEMETRY": "1", "NNCF_CI": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def refuse_telemetry() -> None:
    """Keeps them from it, before they are imported: no call goes out that the user did not ask for."""
    for name, value in REFUSALS.items():
        os.environ.setdefault(name, value)
