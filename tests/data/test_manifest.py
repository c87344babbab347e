"""CSV manifests: as spreadsheets, scripts and Windows write them, and every wrong line refused by its number."""

import os
from pathlib import Path

import numpy as np
import pytest
from data_folders import SIZE, save_image, save_mask
from diffad.data import DataError, evaluation_samples, load_mask, split_held_out, training_samples

CASES = Path(__file__).parents[1] / "cases" / "manifests"

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


# Stored cases


@pytest.mark.parametrize(("name", "training", "good"), [("Good", 3, 2), ("caps", 4, 1), ("OKtrain", 4, 1)])
def test_stored_cases(name, training, good):
    assert len(training_samples(CASES / f"{name}.csv")) == training
    test = evaluation_samples(CASES / f"{name}.csv")
    assert [sample.is_defective for sample in test] == [False] * good + [True]
    assert all(sample.read().size == (32, 32) for sample in test)


def test_stored_case_of_another_encoding_is_explained_in_one_line():
    for read in (training_samples, evaluation_samples):
        with pytest.raises(DataError) as error:
            read(CASES / "cp1252.csv")
        assert str(error.value) == (
            f"{CASES / 'cp1252.csv'}, line 7: not UTF-8 but probably Windows-1252, as older programs save it; "
            "save it as CSV UTF-8"
        )


# How it is written


def read_all(path) -> tuple[list[str], list[tuple[str, str]]]:
    return [s.name for s in training_samples(path)], [(s.name, s.defect) for s in evaluation_samples(path)]


@pytest.fixture
def expected(manifest):
    return read_all(manifest())


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("first", ["", "sep={}", "SEP={}", '"sep={}"'])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_delimiters_separator_lines_and_line_ends(manifest, expected, delimiter, first, ending):
    lines = manifest().read_text().splitlines()
    lines = [*([first.format(delimiter)] if first else []), *[line.replace(",", delimiter) for line in lines]]
    path = manifest()
    path.write_bytes(ending.join(lines).encode())
    assert read_all(path) == expected


def test_a_separator_line_decides(manifest, expected):
    path = manifest(["sep=|", "image|split|label|mask", *[row.replace(",", "|") for row in ROWS]][1:], header="sep=|")
    assert read_all(path) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_that_say_what_they_are(manifest, encoding):
    name = "line1/größer.png"
    path = manifest(replaced(0, f"{name},train,good,"))
    save_image(path.parent / name)
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path.write_bytes((mark + path.read_text(encoding="utf-8")).encode(encoding))
    assert training_samples(path)[0].name == name


@pytest.mark.parametrize(
    ("encoding", "message"), [("utf-16-le", "UTF-16 without its mark; save it as CSV UTF-8"), ("latin-1", "not UTF-8")]
)
def test_encodings_that_do_not_are_explained(manifest, encoding, message):
    path = manifest([*ROWS, "line1/ä.png,test,good,"])
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    with pytest.raises(DataError, match=f"parts.csv.*{message}"):
        training_samples(path)


def test_damaged_utf_16_is_explained(manifest):
    path = manifest()
    path.write_bytes(path.read_text().encode("utf-16")[:-1])
    with pytest.raises(DataError, match="parts.csv: begins like UTF-16, but is damaged"):
        training_samples(path)


def test_case_spaces_and_quotes_of_the_header_do_not_matter(manifest, expected):
    assert read_all(manifest(header=' Image ,"SPLIT", Label,MASK ')) == expected
    assert read_all(manifest([" " + row.replace(",", " , ") for row in ROWS])) == expected
    assert read_all(manifest(["", *ROWS, ",,,", ""])) == expected
    assert read_all(manifest([row.replace("train", "Train").replace("test", "TEST") for row in ROWS])) == expected


@pytest.mark.parametrize("word", ["good", "Good", "OK", "normal", "NORMAL", "0", "0.0", "False"])
def test_words_and_numbers_for_good(manifest, expected, word):
    assert read_all(manifest([row.replace("good", word) for row in ROWS])) == expected


@pytest.mark.parametrize(
    ("word", "defect"), [("1", "defect"), ("True", "defect"), ("Kratzer", "Kratzer"), ("2", "2"), ("bad", "bad")]
)
def test_words_and_numbers_for_defects(manifest, word, defect):
    assert read_all(manifest([row.replace("scratch", word) for row in ROWS]))[1][1] == ("line2/f.png", defect)


def test_windows_separators(manifest, expected):
    assert read_all(manifest([row.replace("/", "\\") for row in ROWS])) == expected


@pytest.mark.skipif(os.name == "nt", reason="a separator there")
def test_a_backslash_in_a_name_is_found(manifest):
    path = manifest(replaced(0, "odd\\name.png,train,good,"))
    save_image(path.parent / "odd\\name.png")
    assert training_samples(path)[0].name == "odd\\name.png"


def test_groups_are_read(manifest):
    rows = [f"{row},part {i // 2}" if i < 3 else f"{row}," for i, row in enumerate(ROWS)]
    training = training_samples(manifest(rows, header="image,split,label,mask,Group"))
    assert [sample.group for sample in training] == ["part 0", "part 0", "part 1", None]


def test_a_group_with_training_and_validation_images_is_refused(manifest):
    rows = [f"{row},part" for row in ROWS]
    with pytest.raises(DataError, match="group 'part' has training and validation images"):
        split_held_out(training_samples(manifest(rows, header="image,split,label,mask,group")), 0.5, 0)


def test_a_mask_of_two_rows_is_refused_with_both(manifest):
    with pytest.raises(DataError, match="masks/f.png: is the mask of both line2/f.png and line2/g.png"):
        evaluation_samples(manifest(replaced(6, "line2/g.png,test,hole,masks/../masks/f.png")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column image, split, label"),
        (b"\n\n", "no column image, split, label"),
        (b"image,split,label,Image\n", "several columns are called image"),
        (b'image,split,label\n"a.png,train,good\n', "line 2: unexpected end of data; check its quotation marks"),
        (b'image,split,label\n"a"b,train,good\n', "line 2: .*; check its quotation marks"),
        (b"\x89PNG\r\n\x1a\n\0\0", "no text"),
    ],
)
def test_files_that_are_no_manifest_are_explained(tmp_path, content, message):
    (tmp_path / "parts.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"parts.csv.*{message}"):
        training_samples(tmp_path / "parts.csv")


@pytest.mark.parametrize("name", ["x" * 5000, "a\x07b", "two\nlines", "nul\u2028", "a" * 255 + "/b"])
def test_strange_cells_give_one_short_line(manifest, name):
    with pytest.raises(DataError) as error:
        training_samples(manifest(replaced(0, f'"{name}",train,good,')))
    assert str(error.value).isprintable() and len(str(error.value)) < 500
