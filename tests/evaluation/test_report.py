"""Reports: one file without outside references, the right rows in the right order, and drawn no more than needed."""

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from functools import partial
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from diffad.evaluation.counts import count_pixels
from diffad.evaluation.metrics import detection_metrics, localization_metrics
from diffad.evaluation.report import Pictures, Report, ReportRow, draw_pictures, report_from_predictions, write_report
from diffad.evaluation.report.contents import Outcome
from diffad.evaluation.report.gallery import choose_rows
from diffad.evaluation.report.plots import DEFECTIVE, VARIABLES, score_histogram, score_range
from diffad.imaging.reading import ImageError
from diffad.monitoring.feedback_list import read_feedback
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline

CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """What the tests ask of a page: its references, its text and the gallery's rows."""

    def __init__(self, html: str):
        super().__init__()
        self.references, self.outcomes, self.hidden, self.tags, self.text = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        self.references += [attributes[name] for name in names if name in attributes]
        if "data-outcome" in attributes:
            self.outcomes.append(attributes["data-outcome"])
            self.hidden.append("hidden" in attributes)

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self) -> str:
        """All text, with one space between words."""
        return " ".join(" ".join(self.text).split())


def picture(level: int = 90) -> Image.Image:
    return Image.new("RGB", (16, 12), (level, 80, 70))


def rows_of(scores, truths, threshold, drawn: list | None = None) -> list[ReportRow]:
    """Rows that note in `drawn` when their pictures are asked for."""

    def pictures(name: str, called: bool) -> Pictures:
        if drawn is not None:
            drawn.append(name)
        return Pictures(picture(), picture(), picture(), picture() if called else None)

    return [
        ReportRow(
            name=f"part{i}.png",
            score=float(score),
            p_value=0.5,
            called_defective=bool(score > threshold),
            pictures=partial(pictures, f"part{i}.png", bool(score > threshold)),
            is_defective=None if truth is None else bool(truth),
            defect="scratch" if truth else None,
        )
        for i, (score, truth) in enumerate(zip(scores, truths))
    ]


def report_of(rows: list[ReportRow], **fields) -> Report:
    settings = {
        "title": "Evaluation on <b>screws</b>",
        "facts": {"Model": "runs/<part>"},
        "rows": rows,
        "false_alarm_rate": 0.05,
        "image_threshold": 5.0,
        "pixel_threshold": 4.0,
        "calibration_scores": np.linspace(1, 5.2, 30),
    }
    return Report(**{**settings, **fields})


@pytest.fixture(scope="module")
def evaluation() -> Report:
    """20 good and 30 defective images with masks; both kinds of failures among them."""
    rng = np.random.default_rng(0)
    truths = np.arange(50) >= 20
    scores = rng.normal(3.2, 1, 50) + 3 * truths
    maps = rng.normal(size=(50, 16, 16)).astype(np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    masks[truths, 4:9, 4:9] = True
    maps[masks] += 1.5
    return report_of(
        rows_of(scores, truths, 5.0),
        metrics={**detection_metrics(scores, truths), **localization_metrics(maps, masks)},
        pixel_counts=count_pixels(maps, masks),
    )


def written(report: Report, folder, **options) -> str:
    write_report(report, folder / "report.html", **options)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_page_refers_to_nothing_outside(evaluation, tmp_path):
    html = written(evaluation, tmp_path)
    page = Page(html)
    assert page.references and all(reference.startswith(("data:image/webp;base64,", "#")) for reference in page.references)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html)) and "@import" not in html
    # What is left are the names of SVG's own namespaces, which no browser opens.
    assert set(re.findall(r'(\S+)="https?://', html)) <= {"xmlns", "xmlns:xlink"}
    assert len(re.findall("https?://", html)) == len(re.findall(r'xmlns(?::xlink)?="http', html))
    assert "default-src 'none'" in html


def test_evaluation_shows_metrics_with_intervals_curves_and_rates(evaluation, tmp_path):
    html = written(evaluation, tmp_path)
    text = Page(html).words
    for title in ("ROC, images", "Precision and recall, images", "PRO, pixels"):
        assert title in html
    for label, name in (("image AUROC", "image_auroc"), ("pixel AP", "pixel_ap")):
        value = 100 * evaluation.metrics[name]
        shown, low, high = map(float, re.search(rf"{label} ([\d.]+) % ([\d.]+) to ([\d.]+) %", text).groups())
        assert shown == round(value, 1) and low <= shown <= high
    assert len(re.findall(r"[\d.]+ to [\d.]+ %", text)) == len(evaluation.metrics) == 8
    found = sum(row.called_defective for row in evaluation.rows if row.is_defective)
    assert f"{found} of 30" in html and "4.8 % at most" not in html and "5.0 % at most" in html
    assert "&lt;b&gt;screws&lt;/b&gt;" in html and "runs/&lt;part&gt;" in html and "<b>screws" not in html


def test_plots_take_the_colours_of_either_scheme(evaluation, tmp_path):
    html = written(evaluation, tmp_path)
    assert not any(colour in html for colour in VARIABLES)
    dark = html.partition("prefers-color-scheme: dark")[2]
    for variable in VARIABLES.values():
        name = variable.removeprefix("var(").removesuffix(")")
        assert variable in html and f"{name}: #" in dark


def test_same_report_is_the_same_file(evaluation, tmp_path):
    assert written(evaluation, tmp_path) == written(evaluation, tmp_path)


def test_only_the_gallery_is_drawn_and_the_rest_is_counted(tmp_path):
    drawn = []
    scores, truths = np.linspace(0, 10, 40), np.arange(40) % 2
    html = written(report_of(rows_of(scores, truths, 5.0, drawn)), tmp_path, max_gallery_rows=12)
    assert len(drawn) == len(set(drawn)) == len(Page(html).outcomes) == 12
    assert "12 of 40 images are shown" in re.sub(r"\s+", " ", html) and "28 are left out" in html


def test_failures_come_first_and_leave_room_for_right_verdicts():
    scores, truths = np.linspace(0, 10, 40), np.arange(40) % 2
    chosen = choose_rows(rows_of(scores, truths, 5.0), 12)
    outcomes = [row.outcome for row in chosen]
    assert outcomes == sorted(outcomes, key=list(Outcome).index)
    assert sum(outcome.is_failure for outcome in outcomes) == 9 and len(chosen) == 12
    for outcome in set(outcomes):
        ranked = [row.score for row in chosen if row.outcome is outcome]
        assert ranked == sorted(ranked, reverse=True)
    failures = [score for score, truth in zip(scores, truths) if (score > 5) != truth]
    shown = [row.score for row in chosen if row.outcome.is_failure]
    assert max(shown) == max(failures) and min(shown) == min(failures)  # a cross-section, not the top


def test_few_failures_leave_their_room_to_the_others():
    chosen = choose_rows(rows_of([9, 1, 8, 2, 7, 3], [1, 0, 1, 0, 1, 1], 5.0), 5)
    assert [row.name for row in chosen][0] == "part5.png" and chosen[0].outcome is Outcome.MISSED
    assert len(chosen) == 5


def test_prediction_run_has_no_metrics_and_is_ranked(tmp_path):
    html = written(report_of(rows_of([1, 9, 4, 7, 2], [None] * 5, 5.0)), tmp_path, max_gallery_rows=3)
    page = Page(html)
    assert page.outcomes == ["called_defective", "called_defective", "called_good"]
    assert re.findall(r"part\d\.png", page.words) == ["part1.png", "part3.png", "part2.png"]
    assert "AUROC" not in html and "2 of 5" in html
    assert "calibration images" in html


def test_a_model_that_can_not_repair_is_not_said_to_have_called_good(tmp_path):
    rows = [ReportRow("a.png", 9.0, 0.01, True, lambda: Pictures(picture(), picture(), picture()))]
    html = written(report_of(rows), tmp_path)
    assert "not repaired:<br>this model can&#39;t" in html and "not repaired:<br>called good" not in html


def test_a_rate_that_can_not_be_promised_is_refused(tmp_path):
    report = report_of(rows_of([1, 9], [None, None], 5.0), calibration_scores=np.array([1.0, 2.0, 3.0, 5.0]))
    with pytest.raises(ValueError, match="a false_alarm_rate of 0.05 needs 19 "):
        write_report(report, tmp_path / "report.html")
    assert "20.0 % at most" in written(dataclasses.replace(report, false_alarm_rate=0.2), tmp_path)


def test_a_score_far_out_does_not_flatten_the_histogram(tmp_path):
    html = written(report_of(rows_of([1, 2, 3, 1e6], [None] * 4, 5.0)), tmp_path)
    assert "all higher ones" in html


@pytest.mark.parametrize(
    ("scores", "threshold", "expected"),
    [
        ([1, 2, 3, 9], 5, (1, 9)),
        ([1, 2, 3, 1e6], 5, (1, 21)),  # 4 times as far above the threshold as 1 is below it
        ([1, 2, 3], 5, (1, 5)),
        ([25, 30, 40], 5, (5, 40)),
        ([6, 8, 8, 9, 1e6], 5, (5, 17)),  # 4 times as far as the median
        ([4.999, 8, 8, 9, 1e6], 5, (4.999, 17)),
        ([2, 2, 2, 9], 2, (2, 9)),
        ([2, 2], 2, (1.5, 2.5)),
    ],
)
def test_histogram_spans_threshold_and_scores(scores, threshold, expected):
    assert score_range(np.array(scores, dtype=float), threshold) == expected


def test_scores_above_the_threshold_are_drawn_where_they_lie():
    """Bars as matplotlib draws them: one for each of three scores, though all lie above the threshold."""
    svg = score_histogram({"defective": ([25.0, 30.0, 40.0], DEFECTIVE)}, 5.0)
    (outline,) = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--defective\)[^"]*"', svg)
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", outline)]
    tops = [y for y, before in zip(heights[1:], heights) if y < before]  # upwards is less in SVG
    assert len(tops) == 3 and max(tops) - min(tops) < 1e-3


@pytest.mark.parametrize("truths", [[None, True], [True, None]])
def test_mixed_truth_is_refused(truths, tmp_path):
    with pytest.raises(ValueError, match="some images have a truth"):
        write_report(report_of(rows_of([1, 9], truths, 5.0)), tmp_path / "report.html")


def test_empty_report_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        write_report(report_of([]), tmp_path / "report.html")


def test_pictures_keep_their_aspect_and_small_defects():
    anomaly_map = np.zeros((1500, 3000), dtype=np.float32)
    anomaly_map[700, 1500] = 50
    truth = np.zeros(anomaly_map.shape, dtype=bool)
    truth[200:204, 300:304] = True
    called = anomaly_map > 5
    pictures = draw_pictures(Image.new("RGB", (3000, 1500), (90, 90, 90)), anomaly_map, 5.0, called, truth, picture())
    assert {pictures.input.size, pictures.heat_map.size, pictures.overlay.size, pictures.repaired.size} == {(256, 128)}
    assert np.asarray(pictures.heat_map).max() > 200  # averaging 137 pixels would leave a strength of 0.04
    overlay = np.asarray(pictures.overlay)
    assert (overlay == (0, 160, 255)).all(axis=2).any() and (overlay == (0, 255, 0)).all(axis=2).any()


def test_textured_rows_take_100_kilobytes_each_at_most(tmp_path):
    rng = np.random.default_rng(0)

    def pictures() -> Pictures:
        image = smooth_images(1, seed=int(rng.integers(1000)), size=(256, 256))[0]
        anomaly_map = rng.gamma(1, 1, size=(16, 16)).repeat(16, axis=0).repeat(16, axis=1)
        return draw_pictures(image, anomaly_map, 5.0, anomaly_map > 5, repaired=image)

    rows = [ReportRow(f"{i}.png", float(i), 0.5, True, pictures) for i in range(15)]
    write_report(report_of(rows), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 15 * 1e5


def test_predictions_are_read_again_for_the_gallery_only(tmp_path):
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(21, seed=4))
    folder = tmp_path / "line 3"
    folder.mkdir()
    images = smooth_images(3, seed=20)
    broken = np.array(images[0])
    broken[8:20, 8:20] = np.where(np.indices((12, 12)).sum(0) % 4 < 2, 0, 255)[..., None]
    images.append(Image.fromarray(broken))
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    output = pipe(images)
    assert output.is_defective.tolist() == [False, False, False, True]
    columns = zip(output.image_scores, output.p_values, output.is_defective)
    rows = [
        {"path": f"{i}.png", "score": s, "p_value": p, "label": "defective" if label else "good"}
        for i, (s, p, label) in enumerate(columns)
    ]
    rows.append({"path": "broken.png", "error": "broken.png: damaged image"})
    rows[3]["path"] = str(folder / "3.png")
    rows.append({"path": "gone.png", "score": -100.0, "p_value": 1.0, "label": "good"})
    report = report_from_predictions(pipe, rows, folder)
    assert report.facts == {"Images": f"5 in {folder}", "Unreadable": "1 more"}
    assert report.title == "Inspection of line 3" and report.image_threshold == pipe.calibration.image_threshold(0.05)
    html = written(report, tmp_path, max_gallery_rows=4)
    assert Page(html).outcomes == ["called_defective"] + 3 * ["called_good"]
    assert html.count("this verdict is wrong</button>") == 4 and 'id="download"' in html
    assert html.count(">repaired<") == 1 and html.count("not repaired") == 3
    with pytest.raises(ImageError, match="gone.png"):
        write_report(report, tmp_path / "report.html", max_gallery_rows=5)


def in_browser(path: Path, folder: Path) -> str:
    """The page as it is once its scripts have run."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def test_predictions_without_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no scored images"):
        report_from_predictions(tiny_pipeline(), [], tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_verdicts_are_marked_wrong_in_a_browser(tmp_path):
    image = tmp_path / "it's <1>.png"
    smooth_images(1, seed=1)[0].save(image)
    blank = lambda: Pictures(picture(), picture(), picture())  # noqa: E731
    rows = [
        ReportRow(image.name, score, 0.25, called, blank, file=lambda: image, is_unknown=unknown)
        for score, called, unknown in ((3.0, True, False), (2.0, True, True), (1.0, False, False), (0.5, False, False))
    ]
    html = written(Report("run", {}, rows, 0.1, 2.5, 2.5, np.arange(20.0)), tmp_path)
    script = """
    const marks = document.querySelectorAll("[data-record]");
    for (const i of [0, 1, 2, 3, 3]) marks[i].click();
    const list = Object.assign(document.createElement("pre"), {id: "list", textContent: [...marked.values()].join("\\n")});
    document.body.append(list);
    """
    (tmp_path / "marked.html").write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    shown = in_browser(tmp_path / "marked.html", tmp_path)
    lines = unescape(shown.partition('<pre id="list">')[2].partition("</pre>")[0])
    (tmp_path / "feedback.jsonl").write_text(lines + "\n", encoding="utf-8")
    found = [json.loads(line) for line in lines.splitlines()]
    assert [(record["verdict"], record["correct_verdict"]) for record in found] == [
        ("defective", "good"),
        ("unknown", "good"),
        ("good", "defective"),
    ]
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    (record,) = read_feedback(tmp_path / "feedback.jsonl").records.values()
    assert record.name == image.name and record.digest == digest and record.score == 1.0 and record.p_value == 0.25
    assert shown.count(">marked wrong<") == 3


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_filter_buttons_in_a_browser(evaluation, tmp_path):
    html = written(evaluation, tmp_path)
    clicked = html.replace("</body>", '<script>document.querySelector("[data-show=missed]").click()</script></body>')
    (tmp_path / "clicked.html").write_text(clicked, encoding="utf-8")
    page = Page(in_browser(tmp_path / "clicked.html", tmp_path))
    assert "missed" in page.outcomes and "found" in page.outcomes
    assert page.hidden == [outcome != "missed" for outcome in page.outcomes]
