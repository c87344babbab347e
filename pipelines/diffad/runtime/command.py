"""`python detector.py IMAGE...`: an exported model on the command line."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..imaging.decoding import ImageError
from .description import ExportError
from .detector import Detector
from .rows import rows_of


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Scores image files with the exported model in `folder` and prints one line of JSON each.

    An image that can't be read gets a line with the key `error`, and exit code 1.

    Args:
        arguments: of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description="Scores images: one line of JSON each.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    parser.add_argument("--false_alarm_rate", type=float, help="share of good parts that may be called defective")
    parser.add_argument("--category", help="of all images, for a model of several; without it each is recognised")
    parser.add_argument("--precision", help="fp32, bf16 or int8; the default is that of the exported graph")
    parser.add_argument("--device", default="cpu", help="cpu, or another that the runtime knows")
    parser.add_argument("--threads", type=int, help="of one inference; the default is all cores")
    options = parser.parse_args(arguments)
    failed = False
    try:
        detector = Detector(folder, options.device, options.threads, options.precision)
        for path in options.images:
            try:
                found = detector(path, 1, options.category, options.false_alarm_rate)
                row = {name: value for name, value in rows_of([path], found)[0].items() if value is not None}
            except ImageError as error:
                row, failed = {"path": path, "error": str(error)}, True
            print(json.dumps(row), flush=True)
    except (ExportError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(failed)
