"""Tables of the monitor's card from the kept results."""

from pathlib import Path

from diffad_training.benchmarks.records import fill_tables, latest_results

IDENTITY = ("kind", "test", "n", "shift", "change", "model", "profile", "variant")
SHIFTS = (0.5, 1.0, 2.0)


def update_tables(card: Path, results: Path) -> bool:
    """Fills the card's tables with the newest results, and says whether it changed."""
    kept = latest_results(results, IDENTITY)
    tables = {"false alarms": _false_alarms, "all tests": _all_tests, "delay": _delays, "rival": _rivals}
    tables |= {"streams": _streams, "images": _images}
    return fill_tables(card, "monitoring", lambda name: tables[name]([row for row in kept if row["kind"] == name]))


def _false_alarms(rows: list[dict]) -> str:
    heading = "| calibration scores | streams x parts | level + 2 standard errors | any alarm | scores | reject rate |"
    lines = [heading, "|---" * 6 + "|"]
    for row in rows:
        limit = row["level"] + 2 * row["standard_error"]
        lines.append(
            f"| {row['n']} | {row['streams']:,} x {row['parts']:,} | {limit:.1%} | {row['ever']:.1%} | "
            f"{row['by_test']['scores']:.1%} | {row['by_test']['reject rate']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _all_tests(rows: list[dict]) -> str:
    names = ("calibration scores", "streams x parts", "level + 2 standard errors", "any alarm", "scores", "reject rate")
    lines = [f"| {' | '.join((*names, 'embeddings'))} |", "|---" * 7 + "|"]
    for row in rows:
        cells = [str(row["n"]), f"{row['streams']:,} x {row['parts']:,}", f"{row['level'] + 2 * row['standard_error']:.1%}"]
        cells += [f"{value:.1%}" for value in (row["ever"], *row["by_test"].values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _delays(rows: list[dict]) -> str:
    return _by_shift(rows, lambda row: f"{row['n']} ", "calibration scores")


def _rivals(rows: list[dict]) -> str:
    unchanged = {(row["test"], row["n"]): row["ever"] for row in rows if row["shift"] == 0}
    changed = [row for row in rows if row["shift"]]
    return _by_shift(
        changed,
        lambda row: f"{row['test']} | {row['n']} | {unchanged[row['test'], row['n']]:.1%} ",
        "test | calibration scores | unchanged streams with an alarm",
    )


def _by_shift(rows: list[dict], label, heading: str) -> str:
    """One line of medians for each label, from the start on and after good parts."""
    changes = sorted({row["change"] for row in rows})
    columns = [(change, shift) for change in changes for shift in SHIFTS]
    names = [f"{shift:g} sd, {'from the start' if change == 0 else f'after {change:,}'}" for change, shift in columns]
    lines = [f"| {heading} | {' | '.join(names)} |", "|---" * (heading.count("|") + 1 + len(columns)) + "|"]
    of_label: dict[str, dict] = {}
    for row in rows:
        of_label.setdefault(label(row), {})[row["change"], row["shift"]] = row
    for name, cells in of_label.items():
        lines.append(f"| {name}| {' | '.join(_cell(cells[column]) for column in columns)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict) -> str:
    median = "none" if row["median"] is None else f"{row['median']:.0f}"
    return f"{median} ({row['never']:.0%} never)" if row["never"] else median


def _streams(rows: list[dict]) -> str:
    names = ("model", "n", "parts of a stream", "change", "called defective", "AUROC of the change", "median parts to an alarm")
    names += ("streams with an alarm", "first test", "without embeddings", "suggestions")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        median, without = ("none" if row[name] is None else f"{row[name]:.0f}" for name in ("median", "median_without"))
        cells = (row["model"], str(row["n"]), str(row["images"]), row["variant"], f"{row['reject_rate']:.0%}")
        cells += (f"{row['auroc']:.2f}", median, f"{row['alarmed']:.0%}", row["first_test"])
        cells += (f"{without}, {row['alarmed_without']:.0%}", row["suggestions"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _images(rows: list[dict]) -> str:
    """Kept results of an earlier form of the benchmark, with streams drawn with replacement and no embeddings in them."""
    names = ("model", "profile", "n", "test images", "change", "called defective", "median parts to an alarm", "within 200")
    names += ("first test", "AUROC of the change", "p-value of embeddings", "suggestions")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        cells = (row["model"], row["profile"], str(row["n"]), str(row["images"]), row["variant"], f"{row['reject_rate']:.0%}")
        cells += (
            _cell(row),
            f"{row['within']:.0%}",
            row["first_test"],
            f"{row['auroc']:.2f}",
            f"{row['embedding_p_value']:.2g}",
        )
        cells += (row["suggestions"],)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
