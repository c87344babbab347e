"""records.py: results are kept line by line, the newest counts, and only the marked part of a document changes."""

from diffad_training.benchmarks.records import append_result, fill_tables, latest_results


def test_the_newest_of_each_identity_counts_in_the_order_of_the_first(tmp_path):
    path = tmp_path / "results" / "some.jsonl"
    assert latest_results(path, ["category"]) == []
    kept = [{"category": "nut", "value": 1}, {"category": "bolt"}, {"category": "nut", "value": 2}, {"value": 3}]
    for result in kept:
        append_result(path, result)
    assert latest_results(path, ["category"]) == [kept[2], kept[1], kept[3]]
    assert latest_results(path, ["category", "value"]) == kept


def test_tables_are_filled_by_kind_and_name(tmp_path):
    document = tmp_path / "README.md"
    other = "<!-- other -->\nkept\n<!-- /other -->\n"
    document.write_text(f"before\n<!-- x -->\nold\n<!-- /x -->\n{other}<!-- x:a b -->\n<!-- /x -->\nafter\n")
    assert fill_tables(document, "x", lambda name: f"table {name!r}\n")
    expected = f"before\n<!-- x -->\ntable ''\n<!-- /x -->\n{other}<!-- x:a b -->\ntable 'a b'\n<!-- /x -->\nafter\n"
    assert document.read_text() == expected
    assert not fill_tables(document, "x", lambda name: f"table {name!r}\n")
