"""What a way of laying out images must tell: how it is recognised, and which images are for what."""

from collections.abc import Callable
from dataclasses import dataclass

from .sample import Sample

# Path, name of a dataset on the Hub, or object of the `datasets` library, which takes seconds to import.
Source = object


@dataclass(frozen=True)
class Layout:
    """A way of laying out images on disk, recognised by structure, never by the names of datasets or parts.

    Names of folders count in any case of letters.

    Args:
        name: as people know it.
        structure: what recognises it, in one line.
        recognize: whether a path has this layout.
        training: good images to train on; the dataset's own validation images are among them, marked `held_out`.
        test: good and defective test images, with masks as far as there are any.
        notes: what a user should know about how this source is read.
    """

    name: str
    structure: str
    recognize: Callable[..., bool]
    training: Callable[..., list[Sample]]
    test: Callable[..., list[Sample]]
    notes: Callable[..., list[str]] = lambda source: []
