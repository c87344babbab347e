"""Words and numbers that say whether an image is good."""

from .sample import GOOD

GOOD_NAMES = frozenset({"good", "ok", "normal"})
NUMBERED_DEFECT = "defect"  # the type of what a number calls defective
GOOD_NUMBERS = frozenset({"0", "0.0", "false"})
DEFECTIVE_NUMBERS = frozenset({"1", "1.0", "true"})


def defect_of(label: str) -> str:
    """Defect type that a written label means: `good` for good, ok, normal, 0 and false in any case of letters, `defect` for 1
    and true, else the label itself."""
    word = label.strip().casefold()
    if word in GOOD_NAMES | GOOD_NUMBERS:
        return GOOD
    return NUMBERED_DEFECT if word in DEFECTIVE_NUMBERS else label
