"""The source that an address names."""

import stat
from collections.abc import Callable
from pathlib import Path

from ...imaging.reading import IMAGE_SUFFIXES
from .part import PartKey, Source

STREAMS = ("http://", "https://", "rtsp://", "rtsps://")


def source_address(source: str) -> str:
    """The address by which a journal knows a source: the URL, or the absolute path.

    Raises:
        ValueError: if nothing can be watched there.
    """
    if source.startswith(STREAMS):
        return source
    path = Path(source)
    if "://" in source:
        raise ValueError(f"{source}: streams begin with {', '.join(STREAMS)}")
    if not path.exists():
        raise ValueError(f"{source}: no such folder, video file or device")
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{source}: is one image; name its folder, or use `diffad predict`")
    return str(path.resolve())


def is_live(address: str) -> bool:
    """Whether an address of [`source_address`] is a stream or a device, rather than files."""
    return address.startswith(STREAMS) or stat.S_ISCHR(Path(address).stat().st_mode)


def open_source(
    address: str,
    is_known: Callable[[PartKey], bool],
    once: bool = False,
    interval: float = 0.0,
    settle: float = 0.1,
    patience: float = 10.0,
    report: Callable[[str], None] = lambda line: None,
) -> Source:
    """The source of an address of [`source_address`].

    Args:
        is_known: whether a part was judged already.
        once, settle, patience: of [`FolderSource`].
        interval: of [`VideoFile`] and [`Camera`].
        report: takes lines for the operator.

    Raises:
        ValueError: if the options don't fit the source, or it needs an extra that is not installed.
    """
    path = Path(address)
    is_folder = not is_live(address) and path.is_dir()
    if interval and is_folder:
        raise ValueError("--interval is for videos and streams: every image of a folder is a part")
    if once and is_live(address):
        raise ValueError("--once is for folders and videos: a stream has no end")
    try:
        if is_folder:
            from .folder import FolderSource

            return FolderSource(path, is_known, once, settle, patience, report)
        from .video import Camera, VideoFile
    except ModuleNotFoundError as error:
        raise ValueError(f"{address}: needs the Python package {error.name}: pip install 'diffad[watch]'") from None
    return Camera(address, interval) if is_live(address) else VideoFile(path, is_known, interval, report)
