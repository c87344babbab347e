"""Masks belong to one image each, whatever their names and folders, and are checked before anything is scored."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from data_folders import FOLDERS, SIZE, mvtec_ad, save, save_image, save_mask
from diffad import ImageError
from diffad.data import DataError, Sample, describe, evaluation_samples, load_mask
from diffad.data.ground_truth import file_mask
from diffad.imaging.decoding import ImageWarning
from PIL import Image

CASES = Path(__file__).parents[1] / "cases"


def masks_of(folder: Path) -> dict[str, str | None]:
    """Names of the masks of defective images, relative to the folder."""
    return {
        sample.name: sample.mask and Path(sample.mask.name).relative_to(folder).as_posix()
        for sample in evaluation_samples(folder)
        if sample.is_defective
    }


# Pairing


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


def test_stored_case_of_a_mask_that_two_images_claim():
    with pytest.raises(DataError, match="000_mask.png: is the mask of both test/scratch/lineA/000.png and test/scratch/lineB"):
        evaluation_samples(CASES / "mask_pairing" / "A")


def test_stored_case_of_a_suffix_in_upper_case():
    folder = CASES / "mask_suffix" / "D"
    assert masks_of(folder) == {"test/scratch/000.png": "ground_truth/scratch/000_mask.PNG"}


@pytest.fixture
def folder(tmp_path):
    """MVTec layout without masks: images in the folders that a test adds."""
    folder = mvtec_ad(tmp_path / "part")
    shutil.rmtree(folder / "ground_truth")
    shutil.rmtree(folder / "test/hole")
    return folder


def fill(folder: Path, images: list[str], masks: list[str]) -> None:
    for name in images:
        save_image(folder / "test" / name)
    for name in masks:
        save_mask(folder / "ground_truth" / name)


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "BMP", "tif", "TIFF", "webp", "jpg", "JPEG", "pgm", "ppm"])
@pytest.mark.parametrize("ending", ["", "_mask", "_MASK", "_Mask"])
def test_ending_and_suffix_of_a_mask_do_not_matter(folder, suffix, ending):
    fill(folder, ["hole/000.jpg", "hole/001.jpg"], [f"hole/000{ending}.{suffix}", f"hole/001{ending}.{suffix}"])
    assert list(masks_of(folder).values()) == [f"ground_truth/hole/00{i}{ending}.{suffix}" for i in range(2)]


def test_masks_beside_those_of_the_same_name_in_other_folders(folder):
    images = ["hole/a/000.png", "hole/b/000.png", "hole/000.png", "hole/b/c/001.png"]
    fill(folder, images, [f"{Path(name).with_suffix('')}_mask.png" for name in images])
    assert masks_of(folder) == {f"test/{name}": f"ground_truth/{name.removesuffix('.png')}_mask.png" for name in images}


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["a/000.png", "b/001.png"], ["000_mask.png", "001_mask.png"]),
        (["000.png", "001.png"], ["day1/000_mask.png", "day2/deep/001_mask.png"]),
        (["a/000.png", "b/001.png"], ["x/000_mask.png", "001_mask.png"]),
    ],
)
def test_masks_that_lie_deeper_or_less_deep_than_their_images_are_found(folder, images, masks):
    fill(folder, [f"hole/{name}" for name in images], [f"hole/{name}" for name in masks])
    assert masks_of(folder) == {f"test/hole/{i}": f"ground_truth/hole/{m}" for i, m in zip(images, masks)}


def test_a_mask_in_the_folder_of_other_images_is_not_taken(folder):
    fill(folder, ["hole/a/000.png", "hole/b/000.png", "hole/b/001.png"], ["hole/a/000.png", "hole/b/000.png", "hole/a/001.png"])
    with pytest.raises(DataError, match="hole/a/001.png: mask without an image"):
        evaluation_samples(folder)


def test_two_masks_for_one_image_are_refused_by_name(folder):
    fill(folder, ["hole/000.png"], ["hole/000_mask.png", "hole/000.bmp"])
    with pytest.raises(DataError, match="hole/000.png: may have the masks .*000_mask.png and .*000.bmp"):
        evaluation_samples(folder)


def test_names_that_differ_in_case_only_are_told_apart(folder):
    fill(folder, ["hole/a.png", "hole/A.png"], ["hole/a_mask.png", "hole/A_mask.png"])
    assert masks_of(folder) == {f"test/hole/{n}.png": f"ground_truth/hole/{n}_mask.png" for n in "Aa"}


@pytest.mark.parametrize(
    ("layout", "images", "both"),
    [
        ("MVTec AD", ["test/hole/000.bmp"], "test/hole/000.bmp and test/hole/000.png"),
        ("MVTec AD", ["test/hole/HOLE/000.png"], "test/hole/000.png and .*HOLE/000.png|no mask"),
        ("MVTec LOCO AD", ["test/logical_anomalies/a/000.png"], "000.png and test/logical_anomalies/a/000.png"),
        ("MVTec AD 2", ["test_public/bad/000_regular.bmp"], "000_regular.bmp and .*000_regular.png"),
        ("BTAD", ["test/ko/0000.png"], "test/ko/0000.bmp and test/ko/0000.png"),
        ("VisA", ["Data/Images/Anomaly/000.png"], "Anomaly/000.JPG and .*Anomaly/000.png"),
        ("KolektorSDD", ["kos01/Part3.png"], "kos01/Part3.jpg and kos01/Part3.png"),
        ("KolektorSDD2", ["test/20000.jpg"], "test/20000.jpg and test/20000.png"),
    ],
)
def test_no_layout_gives_two_images_one_mask(tmp_path, layout, images, both):
    folder = FOLDERS[layout](tmp_path / "part")
    for name in images:
        save_image(folder / name)
    with pytest.raises(DataError, match=both):
        evaluation_samples(folder)


@pytest.mark.parametrize("layout", ["KolektorSDD", "KolektorSDD2", "VisA", "BTAD", "MVTec AD 2"])
def test_suffixes_in_upper_case_are_found_in_every_layout(tmp_path, layout):
    folder = FOLDERS[layout](tmp_path / "part")
    expected = {sample.name: sample.mask and sample.mask.name for sample in evaluation_samples(folder)}
    for path in [
        *folder.rglob("*_label.bmp"),
        *folder.rglob("*_GT.png"),
        *folder.rglob("Masks/*/*"),
        *folder.rglob("*truth/*/*"),
    ]:
        path.rename(path.with_suffix(path.suffix.upper()))
    found = {sample.name: sample.mask and sample.mask.name for sample in evaluation_samples(folder)}
    assert {name: mask and mask.lower() for name, mask in expected.items()} == {n: m and m.lower() for n, m in found.items()}


# Checks before scoring


def test_stored_case_of_a_blank_mask_is_refused_before_scoring():
    with pytest.raises(DataError, match="1 of 1 masks of defective images are blank: .*scratch/000_mask.png; mark the defects"):
        evaluation_samples(CASES / "blank_masks" / "G")
    assert "evaluation would stop: 1 defective image with a blank mask" in str(describe(CASES / "blank_masks" / "G"))


def test_few_blank_masks_among_many_are_warned_of(folder):
    names = [f"hole/{i:03d}" for i in range(40)]
    fill(folder, [f"{name}.png" for name in names], [f"{name}_mask.png" for name in names])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ImageWarning)
        evaluation_samples(folder)
    for blank in ("hole/003", "hole/017"):
        save_mask(folder / f"ground_truth/{blank}_mask.png", level=0)
    with pytest.warns(ImageWarning, match="2 of 40 masks .* are blank: .*003_mask.png, .*017_mask.png; pixel metrics take all"):
        assert len(evaluation_samples(folder)) == 41
    save_mask(folder / "ground_truth/hole/020_mask.png", level=0)
    with pytest.raises(DataError, match="3 of 40 masks"):
        evaluation_samples(folder)


def test_a_picture_in_place_of_a_mask_is_refused_before_scoring(mvtec_folder):
    picture = np.random.default_rng(0).integers(0, 256, (16, 24), dtype=np.uint8)
    Image.fromarray(picture).save(mvtec_folder / "ground_truth/hole/000_mask.png")
    with pytest.raises(ImageError, match="ground_truth/hole/000_mask.png: no mask but a picture"):
        evaluation_samples(mvtec_folder)


def test_an_inverted_mask_is_warned_of_before_scoring(mvtec_folder):
    save(
        mvtec_folder / "ground_truth/hole/000_mask.png",
        np.pad(np.zeros((4, 4), np.uint8), ((6, 6), (10, 10)), constant_values=255),
    )
    with pytest.warns(ImageWarning, match="hole/000_mask.png: marks 96% of the image as defective and looks inverted"):
        evaluation_samples(mvtec_folder)
    assert "looks inverted" in str(describe(mvtec_folder))


def test_levels_of_visa_and_loco_all_count(tmp_path):
    visa = evaluation_samples(FOLDERS["VisA"](tmp_path / "pcb9"))
    assert [int(sample.mask.read().sum()) for sample in visa if sample.mask] == [5 * 6, 3 * 6]
    loco = evaluation_samples(FOLDERS["MVTec LOCO AD"](tmp_path / "box"))
    assert [int(sample.mask.read().sum()) for sample in loco if sample.mask] == [5 * 6, 6]
    assert load_mask(visa[-1], SIZE).dtype == bool


# Masks at another size


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


def test_mask_of_a_good_image_is_empty_and_reads_nothing():
    def read():
        raise AssertionError("a good image needs no reading")

    result = load_mask(Sample("part", read), (5, 7))
    assert result.shape == (5, 7) and result.dtype == bool and not result.any()
