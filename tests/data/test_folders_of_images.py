"""Good images from folders and from datasets, and test images from a folder."""

import io
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from diffad import ImageError
from diffad.data import DataError, Sample, evaluation_samples, training_samples
from PIL import Image

IMAGE = np.zeros((16, 24, 3), dtype=np.uint8)


def names(samples: list[Sample]) -> list[str]:
    return [sample.name for sample in samples]


# Training images from folders


def test_mvtec_folder_gives_its_good_training_images_in_order(mvtec_folder):
    samples = training_samples(mvtec_folder)
    assert names(samples) == [f"train/good/{i:03d}.png" for i in range(6)]
    assert not any(sample.is_defective for sample in samples)
    stored = np.asarray(Image.open(mvtec_folder / "train/good/004.png"))
    np.testing.assert_array_equal(np.asarray(samples[4].read()), stored)


def test_source_may_be_text(mvtec_folder):
    assert names(training_samples(str(mvtec_folder))) == names(training_samples(mvtec_folder))


def test_plain_folder_is_searched_recursively_and_sorted(tmp_path, save_image):
    for name in ("b/2.jpg", "a/z.PNG", "c.tiff", "b/1.bmp", "a/.hidden.png", ".cache/x.png", "b/.thumbs/y.png"):
        save_image(IMAGE, f"parts/{name}")
    (tmp_path / "parts/notes.txt").write_text("no image")
    (tmp_path / "parts/folder.png").mkdir()
    assert names(training_samples(tmp_path / "parts", all_good=True)) == ["a/z.PNG", "b/1.bmp", "b/2.jpg", "c.tiff"]


def test_hidden_parent_folder_does_not_hide_the_images(tmp_path, save_image):
    save_image(IMAGE, ".data/parts/1.png")
    assert names(training_samples(tmp_path / ".data/parts")) == ["1.png"]


def test_images_are_read_on_demand(tmp_path, save_image):
    save_image(IMAGE, "parts/good.png")
    (tmp_path / "parts/damaged.png").write_bytes(b"no image")
    damaged, good = training_samples(tmp_path / "parts")
    assert good.read().size == (24, 16)
    with pytest.raises(ImageError, match="damaged.png"):
        damaged.read()


def test_empty_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=f"{tmp_path}.*no images"):
        training_samples(tmp_path)


def test_empty_train_good_is_refused_and_nothing_else_taken(mvtec_folder):
    for path in (mvtec_folder / "train/good").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="train/good: no images"):
        training_samples(mvtec_folder)


def test_train_without_good_is_refused(tmp_path, save_image):
    save_image(IMAGE, "part/train/parts/000.png")
    with pytest.raises(DataError, match="train/good"):
        training_samples(tmp_path / "part")


@pytest.mark.parametrize("kind", [str, Path])
def test_unknown_source_is_refused_by_name(tmp_path, no_network, kind):
    with pytest.raises(DataError, match="no_such_folder"):
        training_samples(kind(tmp_path / "no_such_folder"))


def test_misspelt_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    def look_up(name, *args, **kwargs):
        pytest.fail(f"{name} was looked up on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", look_up)
    with pytest.raises(DataError, match="no_such_folder"):
        training_samples(str(tmp_path / "no_such_folder"))


@pytest.mark.parametrize("case", ["category without train", "root of all categories"])
def test_defects_and_masks_are_never_taken_for_good_images(mvtec_folder, case):
    if case == "category without train":
        shutil.rmtree(mvtec_folder / "train")
    source = mvtec_folder if case == "category without train" else mvtec_folder.parent
    with pytest.raises(DataError, match=str(source)):
        training_samples(source)


# Training images from datasets


@pytest.fixture
def image_dataset(pixels):
    """Function that makes a dataset of a number and an image column from encoded images or PIL images."""

    def make(images: list) -> datasets.Dataset:
        features = datasets.Features({"number": datasets.Value("int64"), "photo": datasets.Image()})
        return datasets.Dataset.from_dict({"number": list(range(len(images))), "photo": images}, features=features)

    return make


def encoded(image: np.ndarray, **options) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", **options)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("split", [None, "train"])
def test_saved_dataset_gives_its_image_column(tmp_path, pixels, image_dataset, no_network, split):
    images = [np.roll(pixels, i, axis=1) for i in range(3)]
    dataset = image_dataset([Image.fromarray(image) for image in images])
    if split is not None:
        other = image_dataset([Image.fromarray(IMAGE)])
        dataset = datasets.DatasetDict({"test": other, split: dataset})
    dataset.save_to_disk(tmp_path / "saved")
    samples = training_samples(tmp_path / "saved")
    assert len(set(names(samples))) == 3
    for sample, image in zip(samples, images, strict=True):
        assert not sample.is_defective
        np.testing.assert_array_equal(np.asarray(sample.read()), image)


def test_dataset_rows_become_rgb_like_files(tmp_path, image_dataset):
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    image_dataset([encoded(levels)]).save_to_disk(tmp_path / "saved")
    image = training_samples(tmp_path / "saved")[0].read()
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[..., 1], levels // 257)


def test_dataset_without_train_split_is_refused(tmp_path, pixels, image_dataset):
    dataset = image_dataset([Image.fromarray(pixels)])
    datasets.DatasetDict({"validation": dataset}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="'train', only validation"):
        training_samples(tmp_path / "saved")


def test_dataset_without_images_is_refused(tmp_path):
    datasets.Dataset.from_dict({"label": [1], "text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="no image column among label, text"):
        training_samples(tmp_path / "saved")


def test_too_small_dataset_row_is_refused(tmp_path, image_dataset):
    image_dataset([encoded(IMAGE), encoded(IMAGE[:1, :1])]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ImageError, match=r"saved/train\[1\]"):
        training_samples(tmp_path / "saved")[1].read()


@pytest.mark.parametrize("kind", ["truncated", "missing"])
def test_damaged_dataset_row_is_refused_by_name(tmp_path, pixels, image_dataset, kind):
    row = {"bytes": encoded(pixels)["bytes"][:300], "path": None} if kind == "truncated" else None
    image_dataset([encoded(IMAGE), row]).save_to_disk(tmp_path / "saved")
    sample = training_samples(tmp_path / "saved")[1]
    with pytest.raises(ImageError, match="1"):
        sample.read()


# Test images


def test_evaluation_pairs_every_defect_with_its_mask(mvtec_folder):
    samples = evaluation_samples(mvtec_folder)
    assert [(sample.name, sample.defect, sample.is_defective) for sample in samples] == [
        ("test/good/000.png", "good", False),
        ("test/good/001.png", "good", False),
        ("test/hole/000.png", "hole", True),
        ("test/scratch/000.png", "scratch", True),
        ("test/scratch/001.png", "scratch", True),
    ]
    truth = mvtec_folder / "ground_truth"
    masks = [truth / "hole/000_mask.png", truth / "scratch/000_mask.png", truth / "scratch/001_mask.png"]
    assert [sample.mask and sample.mask.name for sample in samples] == [None, None, *map(str, masks)]
    stored = np.asarray(Image.open(mvtec_folder / "test/scratch/001.png"))
    np.testing.assert_array_equal(np.asarray(samples[4].read()), stored)


@pytest.mark.parametrize("missing", ["test", "test/good"])
def test_folder_without_good_test_images_is_refused(mvtec_folder, missing):
    shutil.rmtree(mvtec_folder / missing)
    with pytest.raises(DataError, match=f"{mvtec_folder}/test/good: no such folder"):
        evaluation_samples(mvtec_folder)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        evaluation_samples(tmp_path / "nowhere")


def test_all_defective_images_are_refused(mvtec_folder):
    for path in (mvtec_folder / "test/good").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no good test images.*test/good"):
        evaluation_samples(mvtec_folder)


def test_all_good_images_are_refused(mvtec_folder):
    for folder in ("test/hole", "test/scratch", "ground_truth"):
        shutil.rmtree(mvtec_folder / folder)
    with pytest.raises(DataError, match="no defective images"):
        evaluation_samples(mvtec_folder)


def test_hidden_test_folder_is_no_defect_type(mvtec_folder, save_image):
    shutil.rmtree(mvtec_folder / "ground_truth")
    save_image(IMAGE, "part/test/.ipynb_checkpoints/000-checkpoint.png")
    assert {sample.defect for sample in evaluation_samples(mvtec_folder)} == {"good", "hole", "scratch"}


def test_blank_masks_of_good_images_are_allowed(mvtec_folder, save_image):
    for name in ("000", "001"):
        save_image(np.zeros((16, 24), dtype=np.uint8), f"part/ground_truth/good/{name}_mask.png")
    assert len(evaluation_samples(mvtec_folder)) == 5
