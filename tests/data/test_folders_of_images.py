import io
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from diffad import ImageError
from diffad.data import DataError, Sample, evaluation_samples, load_mask, split_held_out, training_samples
from diffad.data.files import file_mask
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
    assert names(training_samples(tmp_path / "parts")) == ["a/z.PNG", "b/1.bmp", "b/2.jpg", "c.tiff"]


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


@pytest.mark.parametrize("mask", ["000.png", "000_mask.bmp", "000_mask.tif"])
def test_masks_may_have_other_names(mvtec_folder, mask):
    truth = mvtec_folder / "ground_truth/hole"
    Image.open(truth / "000_mask.png").save(truth / "new.tif")
    (truth / "000_mask.png").unlink()
    (truth / "new.tif").rename(truth / mask)
    assert evaluation_samples(mvtec_folder)[2].mask.name == str(truth / mask)


def test_without_ground_truth_there_are_no_masks(mvtec_folder):
    shutil.rmtree(mvtec_folder / "ground_truth")
    samples = evaluation_samples(mvtec_folder)
    assert [sample.is_defective for sample in samples] == [False, False, True, True, True]
    assert all(sample.mask is None for sample in samples)
    with pytest.raises(DataError, match="test/hole/000.png.*mask"):
        load_mask(samples[2], (8, 8))


def test_image_without_mask_is_refused(mvtec_folder):
    (mvtec_folder / "ground_truth/scratch/001_mask.png").unlink()
    with pytest.raises(DataError, match="test/scratch/001.png: no mask"):
        evaluation_samples(mvtec_folder)


def test_mask_without_image_is_refused(mvtec_folder):
    (mvtec_folder / "test/scratch/000.png").unlink()
    with pytest.raises(DataError, match="ground_truth/scratch/000_mask.png: mask without an image"):
        evaluation_samples(mvtec_folder)


def test_mask_of_another_size_is_refused(mvtec_folder, save_image):
    path = save_image(np.full((16, 23), 255, dtype=np.uint8), "part/ground_truth/hole/000_mask.png")
    with pytest.raises(DataError, match=f"{path}: mask of 23x16 pixels for an image of 24x16"):
        load_mask(evaluation_samples(mvtec_folder)[2], (8, 8))


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


# Masks


@pytest.fixture
def sample_with_mask(save_image):
    """Function that makes a defective sample from its mask `(height, width)`."""

    def make(mask: np.ndarray) -> Sample:
        return Sample("part", lambda: Image.new("RGB", mask.shape[::-1]), "hole", file_mask([save_image(mask, "mask.png")]))

    return make


def naive_box_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mean over whole blocks, at least half."""
    rows, columns = mask.shape[0] // size[0], mask.shape[1] // size[1]
    result = np.zeros(size, dtype=bool)
    for i in range(size[0]):
        for j in range(size[1]):
            block = mask[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            result[i, j] = 2 * int(block.sum()) >= block.size
    return result


@pytest.mark.parametrize("size", [(12, 24), (6, 8), (4, 6), (3, 2)])
@pytest.mark.parametrize("value", [1, 255])
def test_mask_matches_hand_computed_box_filtering(sample_with_mask, size, value):
    mask = np.random.default_rng(0).random((12, 24)) < np.linspace(0.2, 0.8, 24)
    result = load_mask(sample_with_mask(mask.astype(np.uint8) * value), size)
    assert result.dtype == bool
    np.testing.assert_array_equal(result, naive_box_mask(mask, size))


def test_half_covered_pixel_counts_and_less_does_not(sample_with_mask):
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[::2, :10] = 255  # exactly half of the left pixels
    mask[::2, 10:] = 255
    mask[0, 11] = 0  # one less than half of the right one
    np.testing.assert_array_equal(load_mask(sample_with_mask(mask), (1, 2)), [[True, False]])


def test_mask_is_enlarged_without_new_shapes(sample_with_mask):
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    result = load_mask(sample_with_mask(mask.astype(np.uint8) * 255), (15, 21))
    np.testing.assert_array_equal(result, mask.repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize("size", [(4, 4), (7, 3), (8, 12)])
def test_single_defective_pixel_survives_wherever_it_is(sample_with_mask, size):
    for row in range(0, 29, 5):
        for column in range(0, 45, 4):
            mask = np.zeros((29, 45), dtype=np.uint8)
            mask[row, column] = 255
            result = load_mask(sample_with_mask(mask), size)
            expected = int((row + 0.5) / 29 * size[0]), int((column + 0.5) / 45 * size[1])
            assert np.argwhere(result).tolist() == [list(expected)]


def test_empty_mask_of_a_defective_image_is_warned_about(sample_with_mask):
    with pytest.warns(UserWarning, match="mask.png: empty mask"):
        assert not load_mask(sample_with_mask(np.zeros((16, 16), dtype=np.uint8)), (4, 4)).any()


def test_mask_of_a_good_image_is_empty_and_reads_nothing():
    def read():
        raise AssertionError("a good image needs no reading")

    result = load_mask(Sample("part", read), (5, 7))
    assert result.shape == (5, 7) and result.dtype == bool and not result.any()


# Splitting


def numbered(count: int) -> list[Sample]:
    return [Sample(str(i), lambda: None) for i in range(count)]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [4, 5, 10, 101])
def test_split_is_disjoint_complete_and_ordered(count, fraction):
    training, held_out = split_held_out(numbered(count), fraction, seed=0)
    assert sorted(map(int, names(training) + names(held_out))) == list(range(count))
    for part in (training, held_out):
        assert len(part) >= 2
        assert [int(sample.name) for sample in part] == sorted(int(sample.name) for sample in part)
    assert len(held_out) == min(max(round(count * fraction), 2), count - 2)


def test_split_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = split_held_out(numbered(100), 0.2, seed=3)
    state = torch.manual_seed(2).get_state()
    second = split_held_out(numbered(100), 0.2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    other = split_held_out(numbered(100), 0.2, seed=4)
    assert names(first[1]) == names(second[1]) != names(other[1])


def test_split_draws_every_image_alike():
    counts = np.zeros(10)
    for seed in range(500):
        for sample in split_held_out(numbered(10), 0.3, seed)[1]:
            counts[int(sample.name)] += 1
    np.testing.assert_allclose(counts / 500, 0.3, atol=0.1)  # five standard deviations


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_images_are_refused(count):
    with pytest.raises(DataError, match=f"only {count} good images.*4"):
        split_held_out(numbered(count), 0.5, seed=0)
