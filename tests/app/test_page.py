"""The web app's page, in a real browser, which must not reach out of the machine."""

import csv
import hashlib
import shutil
import socket
import threading
import zipfile
from pathlib import Path

import pytest
from app_images import part
from diffad.app import inspected_image
from diffad.app.launch import launch
from diffad.app.page import build_page
from diffad.data import DataError
from diffad.monitoring.feedback_list import read_feedback
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline

LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")


def test_what_can_not_work_is_refused_before_the_app_starts(pipe, tmp_path):
    with pytest.raises(ValueError, match="not calibrated"):
        build_page(tiny_pipeline())
    with pytest.raises(DataError, match="no images found"):
        build_page(pipe, examples=tmp_path)


def test_a_model_that_can_not_repair_says_so(pipe, monkeypatch, files):
    def refuse(*_, **__):
        raise ValueError("this model can't reconstruct")

    monkeypatch.setattr(pipe, "reconstruct", refuse)
    inspect = next(fn.fn for fn in build_page(pipe).fns.values() if fn.name == "inspect")
    first, second = list(inspect(str(files / "hole.png"), 5.0))
    assert first[1].score == pipe(files / "hole.png").image_scores[0]
    assert second[5] == "this model can't reconstruct" and not second[6]["visible"]


def test_a_verdict_called_wrong_is_noted(pipe, files, tmp_path):
    feedback = tmp_path / "feedback.jsonl"
    functions = {fn.name: fn.fn for fn in build_page(pipe, feedback=feedback).fns.values()}
    assert "call_wrong" not in {fn.name for fn in build_page(pipe).fns.values()}
    # Browsers can't show TIFF, so that the page turns it into another file: its own digest is noted
    assert len(list(functions["inspect"](str(files / "other.tif"), 5.0))) == 1
    Image.open(files / "other.tif").save(files / "image.png")
    for name, percent, told in (("hole.png", 50.0, "defective and is good"), ("image.png", 5.0, "good and is defective")):
        found = next(functions["inspect"](str(files / name), percent))[1]
        note, remark = functions["call_wrong"](found, str(files / name), percent, " seen twice ")
        assert note == f"Noted: {name.replace('image.png', 'other.tif')} was called {told}." and remark == ""
    hole, other = read_feedback(feedback).records.values()
    assert hole.digest == hashlib.sha256((files / "hole.png").read_bytes()).hexdigest() and hole.note == "seen twice"
    assert other.digest == hashlib.sha256((files / "other.tif").read_bytes()).hexdigest()
    assert (hole.verdict, hole.correct_verdict, other.verdict, other.correct_verdict) == (
        "defective",
        "good",
        "good",
        "defective",
    )
    assert hole.score == pipe(files / "hole.png").image_scores[0] and 0 < hole.p_value <= 1
    assert functions["call_wrong"](None, None, 5.0, "")[0] == "There is no verdict yet."


def test_models_of_several_categories_offer_a_choice(files):
    pipe = tiny_pipeline(("bolt", "nut", "ring"))
    pipe.calibrate(smooth_images(12, seed=5), categories=[0, 1, 2] * 4)
    blocks = build_page(pipe).blocks.values()
    choices = [block for block in blocks if block.get_block_name() == "dropdown"]
    assert len(choices) == 2 and all([value for _, value in choice.choices][1:] == pipe.category_names for choice in choices)
    # Of 4 normal images of each one gives the statistics: 3 guarantee 25 % or more.
    sliders = [block for block in blocks if block.get_block_name() == "slider"]
    assert [(slider.minimum, slider.value) for slider in sliders] == [(25.0, 25.0)] * 2
    for index, name in enumerate(pipe.category_names):
        found = inspected_image.inspect_image(pipe, part(102), 0.3, name)
        assert found.category == index
        assert found.score == pipe(part(102), categories=name).image_scores[0]
        assert f"threshold {pipe.calibration.image_threshold(0.3, index):.2f}" in inspected_image.verdict(
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
        app = build_page(pipe, name="tiny", examples=examples)
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
    page.locator("#trajectory img").wait_for()


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
