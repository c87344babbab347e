"""CSV manifests: every column, and every wrong line refused by its number."""

import numpy as np
import pytest
from data_folders import SIZE, save_image, save_mask
from diffad.data import DataError, evaluation_samples, load_mask, split_held_out, training_samples

ROWS = [
    "line1/a.png,train,good,",
    "line1/b.png,train,good,",
    "../c.png,validation,good,",
    "line2/d.png,validation,good,",
    "line2/e.png,test,good,",
    "line2/f.png,test,scratch,masks/f.png",
    "line2/g.png,test,hole,masks/g.png",
]


@pytest.fixture
def manifest(tmp_path):
    """Function that writes the manifest with other rows, a header or an encoding."""
    for row in ROWS:
        save_image(tmp_path / "data" / row.partition(",")[0])
    for name in "fg":
        save_mask(tmp_path / f"data/masks/{name}.png")

    def write(rows=ROWS, header="image,split,label,mask", encoding="utf-8"):
        path = tmp_path / "data/parts.csv"
        path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
        return path

    return write


def replaced(index: int, row: str) -> list[str]:
    return [*ROWS[:index], row, *ROWS[index + 1 :]]


def test_manifest_says_which_image_is_for_what(manifest):
    training = training_samples(manifest())
    assert [sample.name for sample in training] == ["line1/a.png", "line1/b.png", "../c.png", "line2/d.png"]
    assert [sample.name for sample in split_held_out(training, 0.9, seed=0)[1]] == ["../c.png", "line2/d.png"]
    test = evaluation_samples(str(manifest()))
    assert [(sample.name, sample.defect) for sample in test] == [
        ("line2/e.png", "good"),
        ("line2/f.png", "scratch"),
        ("line2/g.png", "hole"),
    ]
    assert [bool(load_mask(sample, SIZE).sum()) for sample in test] == [False, True, True]
    assert np.asarray(test[0].read()).shape == (*SIZE, 3)


def test_semicolons_byte_order_mark_and_other_columns_are_fine(manifest):
    rows = ["7;" + row.replace(",", ";") for row in ROWS]
    path = manifest(rows, header="id;image;split;label;mask", encoding="utf-8-sig")
    assert len(training_samples(path)) == 4 and len(evaluation_samples(path)) == 3


def test_mask_column_may_be_missing(manifest):
    path = manifest([row.rpartition(",")[0] for row in ROWS], header="image,split,label")
    assert all(sample.mask is None for sample in evaluation_samples(path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (replaced(1, "line2/f.png,train,scratch,"), r"line 3: line2/f.png is labelled 'scratch' in split train"),
        (replaced(1, "line1/b.png,trian,good,"), r"line 3: split 'trian'; it must be one of train, validation, test"),
        (replaced(1, "line1/x.png,train,good,"), r"line 3: .*x.png: no such file"),
        (replaced(5, "line2/f.png,test,scratch,masks/x.png"), r"line 7: .*masks/x.png: no such file"),
        (replaced(4, "line1/../line1/a.png,test,good,"), r"line 6: line1/../line1/a.png is listed twice"),
        (replaced(5, "line2/f.png,test,,masks/f.png"), r"line 7: no label"),
        (replaced(0, ",train,good,"), r"line 2: no image; name one"),
        (ROWS[4:], "no rows with split train"),
    ],
)
def test_wrong_row_is_refused_by_its_line(manifest, rows, message):
    with pytest.raises(DataError, match=message):
        training_samples(manifest(rows))


def test_missing_column_is_refused_by_name(manifest):
    with pytest.raises(DataError, match="parts.csv: no column split"):
        training_samples(manifest(header="image,part,label,mask"))


def test_some_masks_missing_are_refused(manifest):
    with pytest.raises(DataError, match="line2/g.png: no mask"):
        evaluation_samples(manifest(replaced(6, "line2/g.png,test,hole,")))
