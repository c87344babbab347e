"""The web app's page: one image at a time, or many at once. Layout and events; `inspected_image` and `batch` do the rest."""

import math
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from ..data import DataError, image_files
from ..imaging.reading import ImageError
from ..pipeline_diffad import DiffADPipeline
from ..runtime.detector import Detector
from . import batch, inspected_image
from .inspected_image import InspectedImage
from .launch import refuse_addresses
from .operators_word import OperatorsWord
from .silent_gradio import gr
from .uploaded_image import UploadedImage
from .uploads import MAX_PIXELS, read_upload, uploaded_samples

HOUR = 3600  # seconds; what users leave behind is deleted after a day, and when the app ends
FILE_TYPES = ["image", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".zip"]
SHOWN_BY_BROWSERS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
IDLE_BATCH = inspected_image.banner("Waiting for images", "Choose files on the left, then press Inspect.")
IDLE = inspected_image.banner("Waiting for an image", "Drop one on the left, paste it, or take it with the camera.")


def build_page(
    pipe: DiffADPipeline | Detector,
    name: str = "diffad",
    examples: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    feedback: str | Path | None = None,
) -> gr.Blocks:
    """The app for one calibrated pipeline; [`diffad.app.launch.launch`] serves it.

    Args:
        name: headline, for example the model's.
        examples: folder whose images are offered to try.
        max_pixels: of an image; larger ones are refused by a sentence on the page.
        feedback: list to which verdicts that users call wrong are appended, as JSON lines; None leaves the button out.

    Raises:
        ValueError: if the pipeline is not calibrated.
        DataError: if there are no example images.
    """
    if not pipe.calibration.is_fitted:
        raise ValueError("the pipeline is not calibrated: call pipe.calibrate(good_images) first")
    example_files = [str(path) for path in image_files(Path(examples))] if examples else []
    if examples and not example_files:
        raise DataError(f"{examples}: no images found to offer as examples")
    word = None if feedback is None else OperatorsWord(Path(feedback))
    turn = threading.Lock()  # a pipeline serves one caller at a time; users take turns

    def view(found: InspectedImage | None, percent: float) -> tuple:
        """Banner, overlay and heat map at a false-alarm rate."""
        if found is None:
            return gr.skip(), gr.skip(), gr.skip()
        rate = percent / 100
        return inspected_image.verdict(found, pipe.calibration, rate), *inspected_image.pictures(found, pipe.calibration, rate)

    def inspect(path: str | None, percent: float, category: str | None = None) -> Iterator[tuple]:
        """The input, inspection, banner, overlay, heat map; later note, before and after, the way there."""
        if path is None:
            yield gr.skip(), None, IDLE, None, None, *no_repair("")
            return
        try:
            image = read_upload(path, max_pixels)
        except ImageError as error:
            refusal = inspected_image.banner("This file can't be inspected", str(error))
            yield gr.skip(), None, refusal, None, None, *no_repair("")
            return
        if Path(path).suffix.lower() not in SHOWN_BY_BROWSERS:
            if word is not None:
                word.remember(Path(path), image)
            yield image, *[gr.skip()] * 7  # as PNG, with the same pixels; this change calls `inspect` again
            return
        with turn:
            found = inspected_image.inspect_image(pipe, image, percent / 100, category)
        looking = no_repair("Finding out what the part should have looked like …")
        yield gr.skip(), found, *view(found, percent), *looking
        yield *[gr.skip()] * 5, *repair(path, percent, category)

    def repair(path: str | None, percent: float, category: str | None = None) -> tuple:
        """Note, before and after, the way there."""
        try:
            image = read_upload(path, max_pixels) if path else None
        except ImageError:
            image = None  # the banner says so
        if image is None:
            return no_repair("")
        try:
            with turn:
                repaired = inspected_image.repair(pipe, image, percent / 100, category)
        except ValueError as error:  # what this model or image does not allow
            return no_repair(str(error))
        if repaired is None:
            return no_repair(f"Nothing to repair: at {percent:.3g} % false alarms this part counts as good.")
        *pictures, confident = repaired
        note = f"What counts as defective at {percent:.3g} % false alarms has been repaired."
        if not confident:
            note += " Too much was replaced, or something still looks defective: the part may have looked otherwise."
        return note, *(gr.update(value=value, visible=True) for value in pictures)

    def no_repair(note: str) -> tuple:
        """Note, and nothing where before and after and the way there would be."""
        return note, *(gr.update(value=None, visible=False) for _ in range(2))

    def call_wrong(found: InspectedImage | None, path: str | None, percent: float, note: str) -> tuple:
        """What became of the report, and an empty note."""
        if found is None or path is None:
            return "There is no verdict yet.", gr.skip()
        image = read_upload(path, max_pixels)
        try:
            record = word.call_wrong(found, pipe.calibration, percent / 100, Path(path), image, note)
        except OSError as error:
            return f"This could not be noted: {error.strerror or error}.", gr.skip()
        return f"Noted: {record.name} was called {record.verdict} and is {record.correct_verdict}.", ""

    def inspect_batch(
        paths: list[str] | None,
        percent: float,
        category: str | None = None,
        progress=gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple]:
        """Summary, table, gallery, CSV file, zip of overlays."""
        no_results = (None, gr.update(visible=False), *[gr.update(value=None, interactive=False)] * 2)
        samples = uploaded_samples(paths or [], max_pixels)
        if not samples:
            yield inspected_image.banner("No images", "Choose image files, or a zip archive of images."), *no_results
            return
        with tempfile.TemporaryDirectory() as folder:  # gradio has copied both files when it comes back for more
            table, overlays = Path(folder, "diffad.csv"), Path(folder, "diffad-overlays.zip")
            rows, gallery = batch.inspect_files(
                pipe,
                samples,
                percent / 100,
                overlays,
                category,
                turn,
                on_progress=lambda done, total: progress((done, total), unit="images"),
            )
            batch.write_csv(rows, table)
            downloads = [gr.update(value=str(path), interactive=True) for path in (table, overlays)]
            thumbnails = gr.update(value=gallery, visible=True)
            yield batch.summary(rows, percent / 100), batch.table(rows), thumbnails, *downloads

    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as app:
        gr.Markdown(f"# {name}")
        with gr.Tab("One image"):
            found = gr.State(time_to_live=24 * HOUR)
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    source = UploadedImage(
                        label="Image",
                        format="png",
                        sources=["upload", "clipboard", "webcam"],
                        height=340,
                        buttons=[],
                        elem_id="source",
                    )
                    percent = _rate_slider(pipe, "rate")
                    category = _category_choice(pipe)
                    again = gr.Button("Repair at this rate")
                    if example_files:
                        gr.Examples(example_files, source, examples_per_page=12)
                with gr.Column(scale=5):
                    banner = gr.HTML(IDLE, elem_id="verdict", elem_classes="banner")
                    if word is not None:
                        with gr.Row():
                            remark = gr.Textbox(placeholder="note, if you like", show_label=False, max_lines=1, scale=3)
                            wrong = gr.Button("This verdict is wrong", scale=1)
                        noted = gr.Markdown(elem_id="noted")
                    with gr.Row():
                        picture = gr.Image(label="What stands out", buttons=["fullscreen", "download"], elem_id="overlay")
                        heat = gr.Image(label="Heat map", buttons=["fullscreen", "download"], elem_id="heat")
                    note = gr.Markdown(elem_id="note")
                    before_after = gr.ImageSlider(
                        label="As it is | as it should be", visible=False, max_height=420, elem_id="repaired"
                    )
            trajectory = gr.Image(
                label="From defective to normal", visible=False, buttons=["fullscreen", "download"], elem_id="trajectory"
            )

            choice = [category] if category else []
            shown = [banner, picture, heat]
            repaired = [note, before_after, trajectory]
            for changed in (source, *choice):
                changed.change(
                    inspect,
                    [source, percent, *choice],
                    [source, found, *shown, *repaired],
                    trigger_mode="always_last",
                    show_progress_on=[banner],
                    api_visibility="private",
                ).then(  # the slider may have moved meanwhile
                    view, [found, percent], shown, show_progress="hidden", api_visibility="private"
                )
            percent.change(
                view, [found, percent], shown, show_progress="hidden", concurrency_limit=None, api_visibility="private"
            )
            again.click(repair, [source, percent, *choice], repaired, show_progress_on=[note], api_visibility="private")

            if word is not None:
                wrong.click(
                    call_wrong,
                    [found, source, percent, remark],
                    [noted, remark],
                    show_progress="hidden",
                    api_visibility="private",
                )
                source.change(lambda: "", None, noted, show_progress="hidden", api_visibility="private")

        with gr.Tab("Many images"):
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    files = gr.File(
                        label="Images, or zip archives of images", file_count="multiple", file_types=FILE_TYPES, elem_id="files"
                    )
                    batch_percent = _rate_slider(pipe, "batch-rate")
                    batch_category = _category_choice(pipe)
                    run = gr.Button("Inspect", variant="primary")
                with gr.Column(scale=5):
                    batch_banner = gr.HTML(IDLE_BATCH, elem_id="summary", elem_classes="banner")
                    rows = gr.Dataframe(
                        headers=list(batch.TABLE_HEADERS), interactive=False, label="Most anomalous first", elem_id="rows"
                    )
                    with gr.Row():
                        table = gr.DownloadButton("Download table (CSV)", interactive=False)
                        overlays = gr.DownloadButton("Download overlays (zip)", interactive=False)
            gallery = gr.Gallery(label="Highest scores", columns=6, object_fit="contain", visible=False, elem_id="gallery")
            run.click(
                inspect_batch,
                [files, batch_percent, *([batch_category] if batch_category else [])],
                [batch_banner, rows, gallery, table, overlays],
                show_progress_on=[batch_banner],
                api_visibility="private",
            )
    refuse_addresses(app)
    return app


def _rate_slider(pipe: DiffADPipeline | Detector, elem_id: str) -> gr.Slider:
    """False-alarm rates in percent, from the smallest one that the calibration of every category can guarantee."""
    num_calibration_images = min(pipe.calibration.images_per_category)
    smallest = math.ceil(1000 / (num_calibration_images + 1)) / 10
    return gr.Slider(
        smallest,
        50,
        value=max(5, smallest),
        step=0.1,
        label="False-alarm rate, %",
        elem_id=elem_id,
        info="Share of good parts that may be called defective. "
        f"The {num_calibration_images} good parts measured for calibration support {smallest:.3g} % or more.",
    )


def _category_choice(pipe: DiffADPipeline | Detector) -> gr.Dropdown | None:
    """Which category the part belongs to, for a model trained on several; it recognises parts itself if left alone."""
    if pipe.category_names is None:
        return None
    return gr.Dropdown([("recognised", None), *((name, name) for name in pipe.category_names)], value=None, label="Category")
