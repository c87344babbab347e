"""What the pipeline was called by before 0.2."""

from collections.abc import Iterator, Sequence

import torch

from .deprecation import former_name, warn_renamed
from .scoring.config import TERMS


class FormerNames:
    """Former attributes and methods of [`DiffADPipeline`], which work on for one release."""

    class_names = former_name("class_names", "category_names")
    class_indices = former_name("class_indices", "category_indices")

    def partial_maps(
        self,
        images: torch.Tensor,
        class_labels: torch.Tensor | None,
        terms: Sequence[str] = TERMS,
        tiles_per_pass: int = 8,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields name and map of what is now [`Scorer.raw_term_maps`]."""
        warn_renamed("pipe.partial_maps", "pipe.scorer.raw_term_maps")
        yield from self.scorer.raw_term_maps(images, class_labels, terms, tiles_per_pass).items()

    def feature_residuals(self, images: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """Returns what is now [`Scorer.feature_residuals`]."""
        warn_renamed("pipe.feature_residuals", "pipe.scorer.feature_residuals")
        return self.scorer.feature_residuals(images, class_labels)
