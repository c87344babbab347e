"""Categories of a model of several, as users name them."""

from collections.abc import Sequence

# The category of every image by name or index, or one for all.
Categories = str | int | Sequence[str | int]


def category_indices(categories: Categories | None, names: Sequence[str] | None, count: int) -> list[int] | None:
    """The category index of each of `count` images from what the user gave; None if that is None.

    Args:
        names: of the model's categories, None for a model of one.

    Raises:
        ValueError: if a category does not exist, or their number is wrong.
    """
    if categories is None:
        return None
    if names is None:
        raise ValueError("categories given, but this model was trained on one category")
    given = [categories] * count if isinstance(categories, str | int) else list(categories)
    if len(given) != count:
        raise ValueError(f"{len(given)} categories for {count} images: give one per image, or one for all")
    known = {name_or_index: i for i, name in enumerate(names) for name_or_index in (name, i)}
    unknown = [category for category in given if category not in known]
    if unknown:
        raise ValueError(f"category {unknown[0]!r} is none of {', '.join(names)} (or 0..{len(names) - 1})")
    return [known[category] for category in given]


def names_of(indices: Sequence[int], unknown: Sequence[bool], names: Sequence[str]) -> list[str | None]:
    """Names of categories by their indices, None for images of a product that is unknown."""
    return [None if is_unknown else names[i] for i, is_unknown in zip(indices, unknown, strict=True)]
