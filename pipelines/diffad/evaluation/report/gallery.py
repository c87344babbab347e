"""Which rows a report shows pictures of, and in which order."""

from collections.abc import Sequence

from ...imaging.drawing import evenly_spaced
from .contents import Outcome, ReportRow

CORRECT_SHARE = 0.25  # of the gallery is kept for verdicts that were right, however many failures there are


def choose_rows(rows: Sequence[ReportRow], limit: int) -> list[ReportRow]:
    """At most `limit` rows, failures first, each kind from the highest score to the lowest.

    Where the truth is known, failures go before verdicts that were right, a cross-section of scores of either kind is taken
    where not all fit. Where it is unknown, the highest scores are taken.
    """
    ranked = sorted(rows, key=lambda row: -row.score)
    if rows[0].is_defective is None:
        return ranked[:limit]
    failures = [row for row in ranked if row.outcome.is_failure]
    correct = [row for row in ranked if not row.outcome.is_failure]
    kept_for_correct = min(len(correct), round(CORRECT_SHARE * limit))
    failures = _cross_section(failures, limit - kept_for_correct)
    chosen = failures + _cross_section(correct, limit - len(failures))
    order = list(Outcome)
    return sorted(chosen, key=lambda row: order.index(row.outcome))  # stable: keeps the scores' order within a kind


def _cross_section(ranked: list[ReportRow], count: int) -> list[ReportRow]:
    """`count` rows at even distances, the first and the last among them."""
    return [ranked[i] for i in evenly_spaced(len(ranked), count)]
