"""What a pipeline refuses before work starts, and categories by their names."""

from collections.abc import Sequence

from .imaging.preprocessing import ImageInput
from .scoring.arguments import check_arguments
from .scoring.categories import Categories, category_indices


class ChecksInputs:
    """Mixin before DiffusionPipeline, of a pipeline that has calibrations by profile."""

    def check_inputs(
        self,
        images: Sequence[ImageInput],
        batch_size: int,
        rate: float | None = None,
        map_size: tuple[int, int] | None = None,
        output_type: str = "np",
        profile: str | None = None,
        output_types: Sequence[str] = ("np", "pt"),
    ) -> None:
        """Refuses wrong arguments before work starts.

        Args:
            images, batch_size, map_size, output_type, profile: as for scoring; images are only counted.
            rate: false-alarm rate, which must suit every category.
            output_types: that there are.

        Raises:
            ValueError: naming the argument that is wrong.
        """
        check_arguments(images, batch_size, map_size)
        if output_type not in output_types:
            raise ValueError(f"output_type must be {', '.join(output_types[:-1])} or {output_types[-1]}, got {output_type!r}")
        calibration = self.calibration_of(profile)
        if not calibration.is_fitted:
            raise ValueError("the pipeline is not calibrated: call pipe.calibrate(calibration_images) first")
        if rate is not None:
            calibration.supported_rates(rate)

    def category_indices(self, categories: Categories | None, count: int) -> list[int] | None:
        """Category index of each of `count` images from names or indices; see `diffad.scoring.categories`."""
        return category_indices(categories, self.category_names, count)
