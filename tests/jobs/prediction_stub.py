"""A prediction run without work, which can be killed."""

from functools import partial

from diffad.imaging.reading import ImageError
from diffad.jobs.predict import record_rows, rows_in_batches
from PIL import Image


class Stub:
    """Images and scores without work: a name's number decides both. Counts what it scored; can be killed."""

    def __init__(self, kill_at: str | None = None):
        self.scored, self.kill_at = [], kill_at

    def read(self, name):
        if int(name) % 7 == 3:
            raise ImageError(f"{name}: unreadable")
        return Image.new("RGB", (8, 8))

    def __call__(self, names, images):
        if self.kill_at in names:
            raise KeyboardInterrupt
        self.scored += names
        return [{"path": name, "score": float(name), "label": "good", "boxes": [[0, 0, 1, int(name)]]} for name in names]


def run(stub, output, count, run=None, batch_size=4):
    names = [str(i) for i in range(count)]
    return record_rows(names, partial(rows_in_batches, stub.read, stub, batch_size, None), output, run or {"model": "m"})
