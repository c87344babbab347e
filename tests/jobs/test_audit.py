"""An audit of images on the disk, and the list that training takes."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from diffad.data import DataError, find_layout, training_samples
from diffad.evaluation.report.audit_page import audit_pictures
from diffad.jobs.audit import audit, read_images, scale_vectors
from diffad.jobs.audit_gallery import audit_page
from diffad.jobs.exclusion import read_excluded, without_excluded, write_list
from diffad.models.multiscale import COARSE_DIMS
from PIL import Image
from tiny_pipeline import smooth_images, tiny_extractor


def with_block(image: Image.Image) -> Image.Image:
    pixels = np.array(image)
    pixels[8:20, 8:20] = (255, 0, 0)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """24 good images, a defect, a copy of one image and of one test image."""
    root = tmp_path_factory.mktemp("parts")
    similar = [Image.blend(image, smooth_images(1, seed=9)[0], 0.7) for image in smooth_images(24, seed=0)]
    images = {f"train/good/{i:02d}.png": image for i, image in enumerate(similar)}
    images["train/good/defect.png"] = with_block(similar[3])
    images["train/good/copy.png"] = similar[5]
    test = Image.blend(smooth_images(1, seed=7)[0], smooth_images(1, seed=9)[0], 0.7)
    images |= {"train/good/leak.png": test, "test/good/00.png": test}
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    layout, source = find_layout(root)
    good, test = layout.training(source), layout.test(source)
    return root, audit(good, read_images([*good, *test], tiny_extractor(), 32), test)


def findings(result) -> dict[str, tuple[str, str]]:
    return {result.samples[f.index].name: (f.reason, f.of) for f in result.findings}


def test_a_defect_a_duplicate_and_a_leak_are_found(audited):
    _, result = audited
    found = findings(result)
    assert result.samples[result.outliers.order[0]].name == "train/good/defect.png"
    assert found["train/good/leak.png"] == ("leak", "test/good/00.png")
    assert found["train/good/copy.png"] == ("duplicate", "train/good/05.png") or found["train/good/05.png"] == (
        "duplicate",
        "train/good/copy.png",
    )
    assert found["train/good/defect.png"][0] == "outlier"


def test_the_list_holds_all_images_and_leaves_out_those_with_a_reason(audited, tmp_path):
    root, result = audited
    path = tmp_path / "audit.csv"
    write_list(result, path)
    rows = list(csv.DictReader(path.open()))
    assert {row["path"] for row in rows} == {sample.name for sample in result.samples}
    assert [int(row["rank"]) for row in rows if not row["reason"]] == sorted(
        int(row["rank"]) for row in rows if not row["reason"]
    )
    excluded = read_excluded(path)
    assert set(excluded) == findings(result).keys()
    kept = without_excluded(training_samples(root), excluded, path)
    assert len(kept) == len(result.samples) - len(excluded) and not {sample.name for sample in kept} & set(excluded)


def test_names_that_look_like_formulas_come_back(audited, tmp_path):
    _, result = audited
    first = result.findings[0].index
    renamed = [dataclasses.replace(s, name="=1+1.png") if i == first else s for i, s in enumerate(result.samples)]
    write_list(dataclasses.replace(result, samples=renamed), tmp_path / "audit.csv")
    assert "=1+1.png" in read_excluded(tmp_path / "audit.csv") and "\n=1" not in (tmp_path / "audit.csv").read_text()


def test_a_text_file_lists_names(tmp_path):
    (tmp_path / "names.txt").write_text("a.png\n\n b.png \n")
    assert read_excluded(tmp_path / "names.txt") == ["a.png", "b.png"]


def test_lists_that_fit_nothing_are_refused(audited, tmp_path):
    _, result = audited
    with pytest.raises(DataError, match=r"none\.csv: can't be read"):
        read_excluded(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("image,label\na.png,good\n")
    with pytest.raises(DataError, match=r"other\.csv: its first line must name path and reason"):
        read_excluded(tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"l\.csv: lists gone\.png, which is not among the good images \(1 of 1 are not\)"):
        without_excluded(result.samples, ["gone.png"], tmp_path / "l.csv")


def test_the_gallery_shows_what_is_listed_first(audited):
    _, result = audited
    page = audit_page(result, "parts", limit=len(result.findings) + 2)
    assert [card.is_listed for card in page.cards] == [True] * len(result.findings) + [False] * 2
    by_name = {card.name: card for card in page.cards}
    assert "near duplicate of" in by_name["train/good/leak.png"].pictures()
    assert by_name["train/good/defect.png"].pictures().keys() == {"image", "unlike the others"}


def test_the_map_shows_where_an_image_is_unlike_the_others():
    image, distances = Image.new("RGB", (64, 64), (90, 90, 90)), np.ones((4, 4))
    distances[0, 1] = 6
    marked = np.asarray(audit_pictures(image, distances)["unlike the others"]).astype(int)
    changed = np.abs(marked - 90).sum(axis=2)
    assert changed[2:14, 18:30].min() > 1.5 * max(changed[32:].max(), changed[:, 48:].max())


def test_vectors_are_standardised_and_many_channels_projected():
    raw = torch.randn(9, 300, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 50, 300)[:, None, None] + 3
    few, many = (scale_vectors(channels.half()).vectors.float() for channels in (raw[:, :5], raw))  # (n, P, D)
    assert few.shape == (9, 16, 5) and few.mean(dim=(0, 1)).abs().max() < 1e-2
    assert few.std(dim=(0, 1)).numpy() == pytest.approx(1, abs=1e-2)
    # Directions are orthogonal, and scaled so that as much variance is left
    assert many.shape == (9, 16, COARSE_DIMS) and many.var(dim=(0, 1)).sum() == pytest.approx(300, rel=0.05)


def test_three_images_are_too_few():
    with pytest.raises(DataError, match="at least 4"):
        audit([], None)
