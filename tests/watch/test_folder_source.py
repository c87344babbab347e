"""A folder that is written to: files that grow, pause, change, vanish, and never become an image."""

import os
import threading
import time

import pytest
from diffad.imaging.decoding import ImageError
from diffad.watch.sources.completeness import has_end
from diffad.watch.sources.folder import FolderSource
from PIL import Image
from watch_stub import eventually, grey, save_grey


class Collector:
    """Parts of a source, collected by a thread."""

    def __init__(self, source: FolderSource):
        self.stop, self.parts, self.error = threading.Event(), [], None
        self.source, self.looks = source, 0
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Collector":
        self.thread.start()
        eventually(lambda: self.looks or self.error)
        return self

    def __exit__(self, *exception) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()

    @property
    def names(self) -> list[str]:
        return [part.key.name for part in self.parts]

    def _run(self) -> None:
        try:
            for part in self.source.parts(self.stop):
                if part is None:
                    self.looks += 1
                else:
                    self.parts.append(part)
        except (OSError, ValueError) as error:
            self.error = error


def watching(folder, known=frozenset(), **options) -> Collector:
    return Collector(FolderSource(folder, known.__contains__, **{"settle": 0.05, "patience": 0.4} | options))


def test_files_that_are_there_come_first_the_oldest_before(tmp_path):
    paths = save_grey(tmp_path, [1, 2, 3])
    for path, age in zip(paths, (10, 30, 20)):
        os.utime(path, (time.time() - age,) * 2)
    with watching(tmp_path) as seen:
        eventually(lambda: len(seen.parts) == 3)
        save_grey(tmp_path / "lot", [4])
        grey(5).save(tmp_path / ".hidden.png")
        (tmp_path / ".tmp").mkdir()
        grey(5).save(tmp_path / ".tmp/5.png")
        (tmp_path / "notes.txt").write_text("no image")
        eventually(lambda: len(seen.parts) == 4)
        time.sleep(0.2)
    assert seen.names == ["0001.png", "0002.png", "0000.png", "lot/0000.png"]
    assert [part.image.getpixel((0, 0))[0] for part in seen.parts] == [2, 3, 1, 4]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm"])
def test_a_half_written_file_is_waited_for(tmp_path, suffix, pixels):
    """Pauses longer than `settle`, once before the last bytes, without which the image decodes already."""
    Image.fromarray(pixels).save(tmp_path / f"whole{suffix}")  # rows of a BMP end in two bytes that hold nothing
    data = (tmp_path / f"whole{suffix}").read_bytes()
    folder = tmp_path / "camera"
    folder.mkdir()
    with watching(folder, patience=5) as seen, (folder / f"part{suffix}").open("wb", buffering=0) as file:
        for start, end in ((0, len(data) // 2), (len(data) // 2, len(data) - 2)):
            file.write(data[start:end])
            time.sleep(0.15)
            assert not seen.parts
        file.write(data[-2:])
        eventually(lambda: seen.parts)
        time.sleep(0.1)
    assert seen.names == [f"part{suffix}"] and seen.parts[0].key.size == len(data)
    with Image.open(tmp_path / f"whole{suffix}") as whole:
        assert seen.parts[0].image.tobytes() == whole.convert("RGB").tobytes()


def test_what_never_becomes_an_image_is_a_part_without_one(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    started = time.monotonic()
    with watching(tmp_path) as seen:
        eventually(lambda: seen.parts)
    assert time.monotonic() - started > 0.4
    assert isinstance(seen.parts[0].image, ImageError) and "broken.png" in str(seen.parts[0].image)


def test_an_image_without_its_end_is_taken_after_the_patience(tmp_path):
    grey(1).save(tmp_path / "part.png")
    data = (tmp_path / "part.png").read_bytes()
    (tmp_path / "part.png").write_bytes(data[:-12])
    assert not has_end(tmp_path / "part.png")
    with watching(tmp_path) as seen:
        eventually(lambda: seen.parts)
    assert isinstance(seen.parts[0].image, Image.Image)


def test_a_file_that_changes_later_is_another_part(tmp_path):
    with watching(tmp_path) as seen:
        for level, count in ((1, 1), (2, 2)):
            grey(level).save(tmp_path / "latest.png")
            eventually(lambda count=count: len(seen.parts) == count)
    assert [part.image.getpixel((0, 0))[0] for part in seen.parts] == [1, 2]


def test_known_parts_do_not_come_again(tmp_path):
    paths = save_grey(tmp_path, [1, 2])
    with watching(tmp_path, once=True) as first:
        first.thread.join(5)
    assert len(first.parts) == 2
    known = frozenset([first.parts[0].key])
    with watching(tmp_path, known, once=True) as second:
        second.thread.join(5)
    assert second.names == [paths[1].name]


def test_a_file_that_vanishes_is_reported(tmp_path):
    lines: list[str] = []
    with watching(tmp_path, settle=0.5, report=lines.append) as seen:
        (path,) = save_grey(tmp_path, [1])
        eventually(lambda: seen.source._candidates)
        path.unlink()
        eventually(lambda: lines)
    assert lines == [f"{path.resolve()}: was removed before it was judged"] and not seen.parts


def test_files_that_no_notification_tells_of_are_found(tmp_path, monkeypatch):
    """As on network drives; also when notifications work, nothing comes twice."""
    monkeypatch.setattr(FolderSource, "_is_seen", lambda self, path: False)
    with watching(tmp_path) as seen:
        save_grey(tmp_path, [1, 2])
        eventually(lambda: len(seen.parts) == 2)
        looks = seen.looks
        eventually(lambda: seen.looks > looks)
        assert len(seen.parts) == 2


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_gone_or_replaced_ends_the_source(tmp_path, replaced):
    folder = tmp_path / "camera"
    save_grey(folder, [1])
    with watching(folder) as seen:
        eventually(lambda: seen.parts)
        folder.rename(tmp_path / "elsewhere")
        if replaced:
            folder.mkdir()
        eventually(lambda: seen.error is not None)
        assert "camera" in str(seen.error)
