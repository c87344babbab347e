"""The gallery of an audit's page: which images it shows, in which order, and what it says of them."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..evaluation.report.audit_page import AuditCard, AuditPage, audit_pictures
from ..scoring.outliers import FALSE_RATE, highest
from .audit import DUPLICATE, LEAK, OUTLIER, Audit, Finding


def audit_page(result: Audit, source: str, limit: int = 60) -> AuditPage:
    """The gallery of an audit: what the list leaves out, then the next images by rank, at most `limit` in all."""
    outliers, duplicates = result.outliers, result.duplicates
    everything = [*result.samples, *result.test]
    place = {sample.name: i for i, sample in reversed(list(enumerate(everything)))}
    rank = {int(i): number for number, i in enumerate(outliers.order, start=1)}
    listed = {finding.index for finding in result.findings}
    others = [Finding(int(i), "by rank") for i in outliers.order if int(i) not in listed]
    typical = {name: np.exp(np.median(highest(values))) for name, values in outliers.distances.items()}

    def pictures(finding: Finding) -> dict[str, Image.Image]:
        other = everything[place[finding.of]].read() if finding.of else None
        relative = [_square(values[finding.index]) / typical[name] for name, values in outliers.distances.items()]
        side = max(map(len, relative))
        grown = [np.kron(values, np.ones((side // len(values),) * 2)) for values in relative]
        return audit_pictures(result.samples[finding.index].read(), np.mean(grown, axis=0), other=other)

    cards = [
        AuditCard(
            name=result.samples[finding.index].name,
            reason=finding.reason,
            figures=f"rank {rank[finding.index]} of {len(rank)} · score {outliers.scores[finding.index]:.1f}",
            is_listed=finding.index in listed,
            pictures=partial(pictures, finding),
        )
        for finding in [*result.findings, *others][:limit]
    ]
    counts = Counter(finding.reason for finding in result.findings)
    facts = {
        "Good images": f"{len(result.samples):,} in {source}",
        "Test images": f"{len(result.test):,}",
        **{f"{reason.capitalize()}s": str(counts[reason]) for reason in (OUTLIER, DUPLICATE, LEAK)},
        "Shown": f"{len(cards)} of {len(result.samples):,}",
    }
    explanation = (
        "The score says how unlike the other good images one is, and is about standard normal where all are good. Above "
        f"{outliers.limit:.2f} an image is called an outlier: among {len(result.samples):,} good ones this happens to any of "
        f"them with a probability of at most {FALSE_RATE:.0%}. Near duplicates are less than {duplicates.threshold:.2f} of "
        "the usual distance apart. Look at what is listed before you leave it out: a rare good part is unlike the others, too."
    )
    return AuditPage(f"Audit of {Path(source).resolve().name}", facts, explanation, cards)


def _square(values: np.ndarray) -> np.ndarray:
    """`(P,)` values of a square grid as `(side, side)`."""
    side = round(len(values) ** 0.5)
    return values.reshape(side, side)
