"""`datasets` objects: splits, labels and masks found by type; streams read once and in order."""

import io
import re
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
from data_folders import SIZE
from diffad import ImageError
from diffad.data import DataError, describe, evaluation_samples, load_mask, split_held_out, stream_samples, training_samples
from diffad.data.huggingface import is_hub_name
from PIL import Image

KINDS = datasets.ClassLabel(names=["scratch", "Good", "hole"])


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(*SIZE, 3), dtype=np.uint8)


def png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def table(labels: list[int], label_type=KINDS, first: int = 0) -> datasets.Dataset:
    """Images numbered from `first`, the masks of all but good ones; the mask column comes first."""
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[2:5] = 1
    features = datasets.Features({"mask": datasets.Image(), "image": datasets.Image(), "label": label_type})
    columns = {
        "mask": [None if label == 1 else png(mask) for label in labels],
        "image": [png(pixels(first + i)) for i in range(len(labels))],
        "label": [KINDS.int2str(label) for label in labels] if label_type == datasets.Value("string") else labels,
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def splits():
    return datasets.DatasetDict(
        {"test": table([1, 0, 2], first=50), "train": table([1, 1, 0, 1]), "validation": table([1, 1, 2], first=20)}
    )


def read(samples):
    return [np.asarray(sample.read()) for sample in samples]


@pytest.mark.parametrize("label_type", [KINDS, datasets.Value("string")])
@pytest.mark.parametrize("stream", [False, True])
def test_splits_labels_and_masks(splits, no_network, label_type, stream):
    source = datasets.DatasetDict({"test": table([1, 0, 2], label_type, 50), "train": table([1, 1, 0, 1], label_type)})
    source["validation"] = table([1, 1, 2], label_type, 20)
    if stream:
        source = datasets.IterableDatasetDict({name: split.to_iterable_dataset() for name, split in source.items()})
    training, held_out = split_held_out(training_samples(source), 0.5, seed=0)
    np.testing.assert_array_equal(read(training), [pixels(i) for i in (0, 1, 3)])  # the defective third is left out
    np.testing.assert_array_equal(read(held_out), [pixels(i) for i in (20, 21)])
    test = evaluation_samples(source)
    assert [sample.defect for sample in test] == ["good", "scratch", "hole"]
    np.testing.assert_array_equal(read(test), [pixels(i) for i in (50, 51, 52)])
    assert [load_mask(sample, SIZE).sum() for sample in test] == [0, 3 * SIZE[1], 3 * SIZE[1]]
    assert len({sample.name for sample in [*training, *held_out, *test]}) == 8


def test_saved_splits_can_be_evaluated_on(splits, tmp_path, no_network):
    splits.save_to_disk(tmp_path / "saved")
    # Rows keep their names when the folder is moved.
    assert [sample.name for sample in evaluation_samples(tmp_path / "saved")] == [f"test[{i}]" for i in range(3)]
    assert "2 defective images of the training and validation splits are left out" in str(describe(tmp_path / "saved"))


@pytest.mark.parametrize("place", [".", "part", "part/good"])
def test_another_programs_state_file_makes_no_dataset_of_a_folder(tmp_path, place):
    folder = tmp_path / "part" / "good"
    folder.mkdir(parents=True)
    Image.fromarray(pixels(0)).save(folder / "0.png")
    (tmp_path / place / "state.json").write_text('{"window": "maximized"}')
    assert describe(folder).layout == "folder of good images"


def test_one_saved_split_is_recognized(splits, tmp_path, no_network):
    splits["train"].save_to_disk(tmp_path / "saved")
    assert describe(tmp_path / "saved").layout == "datasets"


def test_test_split_is_never_trained_on(splits):
    loaded = datasets.Dataset(splits["test"].data, split=datasets.Split.TEST)
    with pytest.raises(DataError, match="no split 'train', only test"):
        training_samples(loaded)


def test_test_split_without_classes_is_refused(splits):
    splits["test"] = splits["test"].rename_column("label", "kind")
    with pytest.raises(DataError, match="'test' has no column label"):
        evaluation_samples(splits)


@pytest.fixture
def numbered():
    """Function that makes splits with labels of a type, written as 0 and 1: two defective images to train, one to test."""

    def make(label_type: str, stream: bool = False, train=(0, 1, 0, 0, 1, 0), test=(1, 0)):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(label_type)})
        source = datasets.DatasetDict()
        for first, name, labels in ((0, "train", train), (50, "test", test)):
            columns = {"image": [png(pixels(first + i)) for i in range(len(labels))], "label": labels}
            source[name] = datasets.Dataset.from_dict(columns, features=features)
        if not stream:
            return source
        return datasets.IterableDatasetDict({name: split.to_iterable_dataset() for name, split in source.items()})

    return make


@pytest.mark.parametrize("label_type", ["bool", "int64", "uint8", "float32"])
@pytest.mark.parametrize("stream", [False, True])
def test_labels_without_names_mean_0_good_and_1_defective(numbered, no_network, label_type, stream):
    source = numbered(label_type, stream)
    np.testing.assert_array_equal(read(training_samples(source)), [pixels(i) for i in (0, 2, 3, 5)])
    assert [sample.defect for sample in evaluation_samples(source)] == ["defect", "good"]
    text = str(describe(source))
    assert "numbers in column label: 0 is taken for good, 1 for defective (defect)" in text
    assert "taken for good ones" not in text and ("2 defective images of the training" in text) == (not stream)


@pytest.mark.parametrize("labels", [(0, 1, 2, 0, 0, 0), (0, 0, -1, 0, 0, 0), (0, 0, None, 0, 0, 0)])
@pytest.mark.parametrize("stream", [False, True])
def test_other_numbers_without_names_are_refused(numbered, no_network, labels, stream):
    source = numbered("int64", stream, train=labels)
    message = f"train[2]: label {labels[2]} is no name, and neither 0 for good nor 1 for defective; cast the column"
    with pytest.raises(DataError, match=re.escape(message)):
        training_samples(source)
    text = str(describe(source))
    assert text.count(message) == 1 and "training would stop: " in text and "taken for good ones" not in text
    with pytest.raises(DataError, match="label 3 is no name"):
        evaluation_samples(numbered("int64", stream, test=(0, 1, 3)))


@pytest.mark.parametrize("stream", [False, True])
def test_class_names_none_of_which_is_good_are_refused(splits, no_network, stream):
    source = splits.cast_column("label", datasets.ClassLabel(names=["scratch", "nominal", "hole"]))
    if stream:
        source = datasets.IterableDatasetDict({name: split.to_iterable_dataset() for name, split in source.items()})
    message = "none of its classes scratch, nominal, hole is named good, ok or normal; rename"
    for read_samples in (training_samples, evaluation_samples):
        with pytest.raises(DataError, match=message):
            read_samples(source)
    text = str(describe(source))
    assert "training would stop" in text and "evaluation would stop" in text and "taken for good" not in text


def test_unlabelled_training_images_are_taken_for_good_and_that_is_said(splits):
    splits["train"] = splits["train"].remove_columns("label")
    assert len(training_samples(splits)) == 4 + 2
    assert "all images of split train are taken for good ones" in str(describe(splits))


def test_one_mask_missing_is_refused(splits):
    rows = splits["test"].to_list()
    rows[2]["mask"] = None
    splits["test"] = datasets.Dataset.from_list(rows, features=splits["test"].features)
    with pytest.raises(DataError, match=r"test\[2\]: no mask"):
        evaluation_samples(splits)


def test_several_image_columns_are_refused():
    features = datasets.Features({"left": datasets.Image(), "right": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"left": [png(pixels(0))], "right": [png(pixels(1))]}, features=features)
    with pytest.raises(DataError, match="several image columns, left, right"):
        training_samples(dataset)


# Images are decoded by the same rules as files


def raw(content: bytes, stream: bool):
    """A dataset of three images, of which the second is made of these bytes."""
    features = datasets.Features({"image": datasets.Image()})
    rows = [png(pixels(0)), {"bytes": content, "path": None}, png(pixels(1))]
    dataset = datasets.Dataset.from_dict({"image": rows}, features=features)
    return dataset.to_iterable_dataset() if stream else dataset


DAMAGED = sorted((Path(__file__).parents[1] / "cases" / "damaged_images").iterdir())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DAMAGED, ids=[path.name for path in DAMAGED])
def test_damaged_rows_are_refused_by_name_and_the_others_read(path, stream, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("another program was started"))
    samples = training_samples(raw(path.read_bytes(), stream))
    with pytest.raises(ImageError, match=r"train\[1\]"):
        samples[1].read()
    np.testing.assert_array_equal(read([samples[0], samples[2]]), [pixels(0), pixels(1)])


@pytest.mark.parametrize("stream", [False, True])
def test_addresses_that_lead_nowhere_are_refused_by_name(tmp_path, stream, no_network):
    Image.fromarray(pixels(0)).save(tmp_path / "a.png")
    features = datasets.Features({"image": datasets.Image()})
    rows = [str(tmp_path / "a.png"), str(tmp_path / "gone.png")]
    dataset = datasets.Dataset.from_dict({"image": rows}, features=features)
    samples = training_samples(dataset.to_iterable_dataset() if stream else dataset)
    np.testing.assert_array_equal(samples[0].read(), pixels(0))
    with pytest.raises(ImageError, match=r"train\[1\], .*gone.png: no such file"):
        samples[1].read()


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_a_format_set_for_training_elsewhere_does_not_matter(splits, form):
    expected = read(training_samples(splits))
    np.testing.assert_array_equal(read(training_samples(splits.with_format(form))), expected)


def test_masks_of_rows_are_read_as_mask_files_are(splits):
    rows = splits["test"].to_list()
    rows[1]["mask"] = png(np.tile(np.arange(SIZE[1], dtype=np.uint8) * 15, (SIZE[0], 1)))
    features = splits["test"].features
    assert load_mask(evaluation_samples({"test": datasets.Dataset.from_list(rows, features=features)})[1], SIZE).mean() > 0.9
    rows[1]["mask"] = png(np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8))
    with pytest.raises(ImageError, match=r"mask of .*test\[1\]: no mask but a picture"):
        evaluation_samples({"test": datasets.Dataset.from_list(rows, features=features)})


@pytest.mark.parametrize("word", ["0", "OK", "Normal", "false"])
def test_text_labels_mean_what_they_mean_in_manifests(word):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    columns = {"image": [png(pixels(i)) for i in range(2)], "label": [word, "1"]}
    test = evaluation_samples({"test": datasets.Dataset.from_dict(columns, features=features)})
    assert [sample.defect for sample in test] == ["good", "defect"]


# Streams


@pytest.fixture
def counted_stream():
    """A stream of seven images without labels, and the list of rows that were taken from it so far."""
    taken = []

    def rows():
        for i in range(7):
            taken.append(i)
            yield {"image": png(pixels(i))}

    return datasets.IterableDataset.from_generator(rows, features=datasets.Features({"image": datasets.Image()})), taken


def test_stream_is_read_once_and_in_order(counted_stream, no_network):
    stream, taken = counted_stream
    samples = training_samples(stream)
    assert taken == list(range(7))
    for _ in range(2):  # a sample can be read again, the stream isn't
        np.testing.assert_array_equal(read(samples), [pixels(i) for i in range(7)])
    assert taken == list(range(7))


def test_stream_is_read_no_further_than_needed(counted_stream):
    stream, taken = counted_stream
    first = next(stream_samples(stream))
    np.testing.assert_array_equal(first.read(), pixels(0))
    assert len(taken) < 7


def test_stream_of_addresses_is_fetched(tmp_path, no_network):
    Image.fromarray(pixels(4)).save(tmp_path / "a.png")
    features = datasets.Features({"image": datasets.Image()})
    stream = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}, features=features).to_iterable_dataset()
    (sample,) = training_samples(stream)
    (tmp_path / "a.png").unlink()
    np.testing.assert_array_equal(sample.read(), pixels(4))


def test_damaged_row_of_a_stream_is_refused_by_name():
    features = datasets.Features({"image": datasets.Image()})
    rows = [png(pixels(0)), {"bytes": png(pixels(1))["bytes"][:60], "path": None}, None]
    stream = datasets.Dataset.from_dict({"image": rows}, features=features).to_iterable_dataset()
    samples = training_samples(stream)
    assert samples[0].read().size == SIZE[::-1]
    for index in (1, 2):
        with pytest.raises(ImageError, match=rf"train\[{index}\]"):
            samples[index].read()


def test_stream_of_unknown_columns_is_refused():
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"image": 1}]))
    with pytest.raises(DataError, match="the types of its columns are unknown"):
        training_samples(stream)


def test_name_on_the_hub_is_streamed_when_asked(monkeypatch, splits):
    def load(name, streaming=False):
        assert (name, streaming) == ("owner/parts", True)
        return {"train": splits["train"].to_iterable_dataset()}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [sample.defect for sample in stream_samples("owner/parts")] == ["good", "good", "scratch", "good"]
    with pytest.raises(DataError, match="no split 'test', only train"):
        next(stream_samples("owner/parts", "test"))


# Names


def test_only_owner_and_name_mean_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert is_hub_name("owner/parts")
    for path in ("parts", "data/parts", "./parts", "../parts", "~/parts", "/data", "a/b/c", "parts/", "c:\\data\\x", "a/b\\c"):
        assert not is_hub_name(path), path


@pytest.mark.parametrize("name", ["parts", "data/parts"])
def test_missing_folder_is_not_looked_up(tmp_path, monkeypatch, no_network, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("was looked up"))
    with pytest.raises(DataError, match=f"{name}: no such folder"):
        training_samples(name)


def test_other_objects_are_refused():
    with pytest.raises(DataError, match="list: neither a path nor a dataset"):
        training_samples([1, 2])
