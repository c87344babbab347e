"""The web app: what it says and shows, and that it does so in a real browser without reaching out of the machine."""

import csv
import shutil
import socket
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from diffad import ImageError
from diffad.app import inspection
from diffad.app.inspection import Inspection, Row
from diffad.app.page import build_app, launch
from diffad.data import DataError
from diffad.pipeline_output import ReconstructionOutput
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline

RATE = 0.1
LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(30, seed=5))
    return pipe


def part(seed: int, size: tuple[int, int] = (48, 32), defective: bool = False) -> Image.Image:
    image = smooth_images(1, seed, size)[0]
    if defective:
        image.paste((255, 255, 255), (8, 8, 28, 24))
    return image


@pytest.fixture
def files(tmp_path):
    """Two good parts and a defective one as files, two files that are no images."""
    part(100).save(tmp_path / "good.png")
    part(101).save(tmp_path / "other.tif")
    part(102, defective=True).save(tmp_path / "hole.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "broken.zip").write_text("no archive")
    return tmp_path


# --- one image


def test_inspection_agrees_with_the_pipeline_and_fits_the_screen(pipe):
    image = part(100, size=(2000, 1000), defective=True)
    found = inspection.inspect_image(pipe, image, RATE)
    expected = pipe(image, map_size=(8, 8))
    assert found.score == expected.image_scores[0] and found.p_value == expected.p_values[0]
    assert found.image.shape == (800, 1600, 3) and found.anomaly_map.shape == (800, 1600)


def test_verdict_turns_at_the_threshold(pipe):
    threshold = pipe.calibration.image_threshold(RATE)
    blank = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)
    at, above = (
        inspection.verdict(Inspection(*blank, score, 0.5), pipe.calibration, RATE) for score in (threshold, threshold + 1)
    )
    assert "No defect found" in at and inspection.GOOD in at and "10 %" in at
    assert "Defective" in above and inspection.DEFECTIVE in above and f"{threshold + 1:.2f}" in above
    # The same score under a stricter rate.
    strict = pipe.calibration.image_threshold(0.05)
    assert strict > threshold
    assert "No defect" in inspection.verdict(Inspection(*blank, (strict + threshold) / 2, 0.5), pipe.calibration, 0.05)


def test_pictures_follow_the_threshold(pipe):
    found = inspection.inspect_image(pipe, part(102, defective=True), RATE)
    loose, strict = (inspection.pictures(found, pipe.calibration, rate) for rate in (0.5, 0.05))
    marks = [(picture == inspection.MASK_COLOUR).all(axis=2).sum() for picture, _ in (loose, strict)]
    assert marks[0] > 0 and (loose[0] != strict[0]).any()
    assert loose[1].sum() > strict[1].sum()  # a lower threshold is hotter


@pytest.mark.parametrize("at_least_as_high", [0, 1, 17])
def test_p_value_in_words_counts_the_good_parts(pipe, at_least_as_high):
    normal = pipe.calibration.calibration_scores.numpy()  # ascending
    score = np.append(normal, normal[-1] + 1)[len(normal) - at_least_as_high]
    p_value = pipe.calibration.p_values(np.array([score]))[0]
    text = inspection.p_value_in_words(float(p_value), len(normal))
    assert text.startswith(f"{at_least_as_high or 'None'} of the {len(normal)} good parts")
    assert f"{(1 + at_least_as_high) / (len(normal) + 1):.3g}" in text


def test_banner_shows_file_names_as_text():
    assert "<img" not in inspection.banner("a", "<img src=x>") and "&lt;img src=x&gt;" in inspection.banner("a", "<img src=x>")


def test_errors_name_the_file_and_not_where_the_server_keeps_it(files):
    with pytest.raises(ImageError, match=r"^text\.png: not a readable image"):
        inspection.read_upload(files / "text.png")


def test_repair_shows_before_and_after_and_leaves_good_parts(pipe):
    image = part(102, defective=True)
    assert pipe(image, false_alarm_rate=0.5).is_defective[0]
    (before, after), strip = inspection.repair(pipe, image, 0.5)
    assert before.size == after.size == image.size and before.tobytes() == image.tobytes() != after.tobytes()
    assert strip.width > 2 * strip.height
    calm = next(image for image in smooth_images(30, seed=7) if not pipe(image, false_alarm_rate=0.05).is_defective[0])
    assert inspection.repair(pipe, calm, 0.05) is None


@pytest.mark.parametrize(
    ("steps", "captions"),
    [
        (0, ["input", "repaired"]),
        (1, ["input", "repaired"]),
        (2, ["input", "step 1 of 2", "repaired"]),
        (101, ["input", "step 1 of 101", "step 34 of 101", "step 67 of 101", "step 100 of 101", "repaired"]),
    ],
)
def test_filmstrip_shows_a_few_of_however_many_steps(monkeypatch, steps, captions):
    class Reporter:
        def reconstruct(self, image, intermediate_steps, **_):
            assert intermediate_steps == "all"
            kept = [Image.new("RGB", (4, 4), (step, 0, 0)) for step in range(1, steps + 1)]
            return ReconstructionOutput([image], [np.ones((4, 4), np.float32)], [kept])

    shown = {}
    monkeypatch.setattr(inspection, "filmstrip", lambda frames, labels: shown.update(frames=frames, labels=labels))
    inspection.repair(Reporter(), Image.new("RGB", (4, 4), (200, 0, 0)), RATE)
    assert shown["labels"] == captions
    levels = [frame.getpixel((0, 0))[0] for frame in shown["frames"]]
    assert levels == [200, *(int(label.split()[1]) for label in captions[1:-1]), 200]


# --- many images


def test_images_of_files_and_archives_have_distinct_names(files):
    with zipfile.ZipFile(files / "parts.zip", "w") as archive:
        for name in ("a/1.png", "b/1.PNG"):
            archive.write(files / "good.png", name)
        for name in ("notes.txt", "a/.hidden.png", "__MACOSX/1.png", "../1.png"):
            archive.writestr(name, "no image")
    (files / "again").mkdir()
    shutil.copy(files / "good.png", files / "again")
    samples = inspection.uploaded_samples([files / "good.png", files / "again/good.png", files / "parts.zip"])
    assert [sample.name for sample in samples] == ["good.png", "good (2).png", "parts.zip/a/1.png", "parts.zip/b/1.PNG"]
    assert all(sample.read().tobytes() == part(100).tobytes() for sample in samples)
    with pytest.raises(ImageError, match=r"^broken\.zip: not a readable zip archive"):
        inspection.uploaded_samples([files / "broken.zip"])


def test_batch_is_sorted_complete_and_scored_as_one_by_one(pipe, files):
    with zipfile.ZipFile(files / "parts.zip", "w") as archive:
        archive.write(files / "hole.png", "holes/hole.png")
        archive.writestr("bad.png", "no image")
        archive.writestr("damaged.png", (files / "good.png").read_bytes())
    packed = (files / "parts.zip").read_bytes()
    position = packed.rindex(b"IDAT") + 20  # stored without compression: the last image's pixels
    (files / "parts.zip").write_bytes(packed[:position] + bytes([packed[position] ^ 255]) + packed[position + 1 :])

    samples = inspection.uploaded_samples([files / name for name in ("good.png", "parts.zip", "text.png", "other.tif")])
    progress = []
    rows, gallery = inspection.inspect_files(
        pipe, samples, RATE, files / "overlays.zip", on_progress=lambda *counts: progress.append(counts)
    )
    assert [row.path for row in rows[3:]] == ["parts.zip/bad.png", "parts.zip/damaged.png", "text.png"]
    assert all(row.label is None and row.score is None and row.error.startswith(row.path) for row in rows[3:])
    assert progress == [(6, 6)]
    scores = {
        name: float(pipe(path).image_scores[0])
        for name, path in {
            "parts.zip/holes/hole.png": files / "hole.png",
            "good.png": files / "good.png",
            "other.tif": files / "other.tif",
        }.items()
    }
    found = {row.path: row.score for row in rows[:3]}
    assert found == pytest.approx(scores, rel=1e-4)
    assert [row.score for row in rows[:3]] == sorted(found.values(), reverse=True)
    threshold = pipe.calibration.image_threshold(RATE)
    assert all((row.label == "defective") == (row.score > threshold) for row in rows[:3])
    assert [caption.split()[1] for _, caption in gallery] == [inspection._short(row.path) for row in rows[:3]]

    with zipfile.ZipFile(files / "overlays.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.overlay.png" for name in scores)
        with archive.open("parts.zip/holes/hole.png.overlay.png") as file:
            assert Image.open(file).size == (48, 32)

    inspection.write_csv(rows, files / "table.csv")
    with (files / "table.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [line["path"] for line in table] == [row.path for row in rows]
    assert float(table[0]["score"]) == rows[0].score and table[-1]["score"] == ""


def test_a_long_batch_lets_others_take_their_turn(pipe, files):
    turns = []

    class Turn:
        def __enter__(self):
            turns.append("taken")

        def __exit__(self, *_):
            turns.append("free")

    samples = inspection.uploaded_samples([files / "good.png"] * (inspection.BATCH_SIZE + 1))
    inspection.inspect_files(pipe, samples, RATE, files / "overlays.zip", turn=Turn())
    assert turns == ["taken", "free"] * 2


def test_summary_counts():
    rows = [Row("a", 3.0, 0.1, "defective"), Row("b", 1.0, 0.5, "good"), Row("c", error="c: damaged")]
    text = inspection.summary(rows, RATE)
    assert "1 of 3 defective" in text and "1 good, at 10 %" in text and "1 could not be read" in text
    assert inspection.GOOD in inspection.summary(rows[1:2], RATE)


# --- the app


def test_what_can_not_work_is_refused_before_the_app_starts(pipe, tmp_path):
    with pytest.raises(ValueError, match="not calibrated"):
        build_app(tiny_pipeline())
    with pytest.raises(DataError, match="no images found"):
        build_app(pipe, examples=tmp_path)


def test_a_model_that_can_not_repair_says_so(pipe, monkeypatch, files):
    def refuse(*_, **__):
        raise ValueError("this model can't reconstruct")

    monkeypatch.setattr(pipe, "reconstruct", refuse)
    inspect = next(fn.fn for fn in build_app(pipe).fns.values() if fn.name == "inspect")
    first, second = list(inspect(str(files / "hole.png"), 5.0))
    assert first[1].score == pipe(files / "hole.png").image_scores[0]
    assert second[5] == "this model can't reconstruct" and not second[6]["visible"]


def test_models_of_several_categories_offer_a_choice(files):
    pipe = tiny_pipeline(("bolt", "nut", "ring"))
    pipe.calibrate(smooth_images(12, seed=5), categories=[0, 1, 2] * 4)
    blocks = build_app(pipe).blocks.values()
    choices = [block for block in blocks if block.get_block_name() == "dropdown"]
    assert len(choices) == 2 and all([value for _, value in choice.choices][1:] == pipe.category_names for choice in choices)
    # Of 4 normal images of each one gives the statistics: 3 guarantee 25 % or more.
    sliders = [block for block in blocks if block.get_block_name() == "slider"]
    assert [(slider.minimum, slider.value) for slider in sliders] == [(25.0, 25.0)] * 2
    for index, name in enumerate(pipe.category_names):
        found = inspection.inspect_image(pipe, part(102), 0.3, name)
        assert found.category == index
        assert found.score == pipe(part(102), categories=name).image_scores[0]
        assert f"threshold {pipe.calibration.image_threshold(0.3, index):.2f}" in inspection.verdict(
            found, pipe.calibration, 0.3
        )


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(pipe, tmp_path_factory):
    """Address of the running app, whose process must not reach out of the machine."""
    examples = tmp_path_factory.mktemp("examples")
    part(103).save(examples / "example.png")
    outside = []

    def guarded(original, host_of):
        def call(*args, **kwargs):
            if host_of(*args) not in LOOPBACK:
                outside.append(host_of(*args))
                raise OSError(f"no network in tests: {host_of(*args)}")
            return original(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect, lambda _, address: address[0]))
        patch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_: host or ""))
        app = build_app(pipe, name="tiny", examples=examples)
        launch(app, prevent_thread_lock=True, quiet=True)
        yield app.local_url
        app.close()
    assert not outside, f"connections were attempted: {outside}"
    assert not [thread for thread in threading.enumerate() if "analytics" in thread.name]


@pytest.fixture
def open_page(browser, served):
    """Function that opens the app as a new user; all pages must stay free of errors and of requests to other hosts."""
    contexts, faults = [], []

    def open_page():
        contexts.append(browser.new_context(accept_downloads=True))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("response", lambda response: response.status >= 400 and faults.append(f"{response.status} {response.url}"))
        page.on("request", lambda request: request.url.startswith((served, "data:", "blob:")) or faults.append(request.url))
        page.goto(served)
        page.get_by_text("Waiting for an image").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def upload(page, path: Path) -> None:
    page.set_input_files("#source input[type=file]", path)


def test_one_image_in_the_browser(pipe, open_page, files):
    page = open_page()
    upload(page, files / "hole.png")
    page.locator("#verdict").get_by_text(f"Score {pipe(files / 'hole.png').image_scores[0]:.2f}").wait_for()
    page.locator("#overlay img").wait_for()
    page.locator("#heat img").wait_for()
    page.locator("#note").get_by_text("5 % false alarms").wait_for()

    # Another rate lays another threshold on the same score.
    rate = page.locator("#rate input[type=number]")
    rate.fill("50")
    rate.press("Enter")
    page.locator("#verdict").get_by_text(f"threshold {pipe.calibration.image_threshold(0.5):.2f}").wait_for()
    assert "Defective" in page.locator("#verdict").inner_text()
    page.get_by_role("button", name="Repair at this rate").click()
    page.locator("#note").get_by_text("at 50 % false alarms has been repaired").wait_for()
    page.locator("#repaired img").first.wait_for()
    page.locator("#filmstrip img").wait_for()


def test_a_file_that_is_no_image_is_refused_kindly_and_leaves_nothing_stale(open_page, files):
    page = open_page()
    upload(page, files / "other.tif")
    page.locator("#verdict").get_by_text("Score ").first.wait_for()
    page.wait_for_function("document.querySelector('#source img').naturalWidth > 0")  # browsers can't show TIFF
    page.locator("#note").get_by_text("false alarms").wait_for()
    page.locator("#source").get_by_label("Remove").click()
    page.locator("#verdict").get_by_text("Waiting for an image").wait_for()
    upload(page, files / "text.png")
    page.locator("#verdict").get_by_text("text.png: not a readable image").wait_for()
    assert page.locator("#overlay img").count() == 0
    page.locator(".gallery-item, .gallery button").first.click()  # an example
    page.locator("#verdict").get_by_text("Score ").first.wait_for()


def test_users_do_not_mix(pipe, open_page, files):
    first, second = open_page(), open_page()
    scores = [f"Score {pipe(files / name).image_scores[0]:.2f}" for name in ("hole.png", "good.png")]
    assert scores[0] != scores[1]
    upload(first, files / "hole.png")
    upload(second, files / "good.png")
    for page, score in zip((first, second), scores):
        page.locator("#verdict").get_by_text(score).wait_for()
    rate = first.locator("#rate input[type=number]")
    rate.fill("50")
    rate.press("Enter")
    first.locator("#verdict").get_by_text("at most 50 %").wait_for()
    assert scores[0] in first.locator("#verdict").inner_text()
    assert scores[1] in second.locator("#verdict").inner_text() and "at most 5 %" in second.locator("#verdict").inner_text()


def test_many_images_in_the_browser(open_page, files):
    page = open_page()
    page.get_by_role("tab", name="Many images").click()
    page.set_input_files("#files input[type=file]", [files / name for name in ("good.png", "hole.png", "text.png")])
    page.locator("#files").get_by_text("text").first.wait_for()
    page.get_by_role("button", name="Inspect").click()
    page.locator("#summary").get_by_text("1 could not be read").wait_for()
    page.locator("#rows").get_by_text("hole.png").locator("visible=true").first.wait_for()
    page.locator("#gallery img").first.wait_for()
    paths = []
    for name in ("Download table (CSV)", "Download overlays (zip)"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        paths.append(download.value.path())
    with open(paths[0], newline="", encoding="utf-8") as file:
        assert {line["path"] for line in csv.DictReader(file)} == {"good.png", "hole.png", "text.png"}
    assert sorted(zipfile.ZipFile(paths[1]).namelist()) == ["good.png.overlay.png", "hole.png.overlay.png"]
