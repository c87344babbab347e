"""How an image becomes a score: the settings, and what follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .integers import check_timesteps_and_seed

TIMESTEP_TERMS = ("kl", "rgb", "feature")
TERMS = (*TIMESTEP_TERMS, "residual", "mahalanobis")
UNET_TERMS = (*TIMESTEP_TERMS, "residual")  # they take a pass of the UNet at every timestep
DENOISER_TERMS = ("feature_residual", "pixel_residual")  # of the feature denoiser, which takes no pass of the UNet
SCALE_TERMS = ("coarse", "detail", "coarse_detail", "neighbors", *DENOISER_TERMS)
DETAIL_TERMS = ("detail", "coarse_detail", "neighbors")  # they look at the image at twice the model's resolution
# They look at features of the image at the model's resolution
FEATURE_TERMS = frozenset({"feature", "residual", "mahalanobis", "coarse", *DENOISER_TERMS})
# Of models that diffad 0.1 trained, one mixture for every product; the present default is in presets.py.
DEFAULT_WEIGHTS = {"rgb": 1 / 6, "residual": 2 / 3, "mahalanobis": 1 / 6}
# Where masks end. Chosen on synthetic defects on held-out good images (training/benchmarks/mask_edges.py), the same for every
# category: on standardised maps 0.65 and 0.7 are alike, on logarithms of tail probabilities 0.7 is better.
DEFAULT_EDGE = 0.7


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of the score.

    The defaults are those of models that diffad 0.1 trained, whose files name no others. The present default is the score
    `default` of [`diffad.scoring.presets`], as `pipe.calibrate(images, score="default")` sets it.

    The terms of a score: `kl`, `rgb` and `feature` compare an image with what the UNet makes of it at each timestep, in the
    reverse step, in pixels and in features. `residual` is the distance of the error in features to that on good parts,
    `mahalanobis` that of the features themselves. Others are those of `scales`.

    Args:
        timesteps: noise levels of the multi-scale score in original units; the default is the paper's {5, 50, 100} of a
            chain respaced to 250 steps.
        num_inference_steps: length of the respaced chain whose reverse steps the KL term compares; None is the full one.
        weights: share of each score term in the anomaly map.
        standardized_terms: terms brought to mean 0 and standard deviation 1 by the statistics of good images; the paper does
            so for `kl` only.
        per_image: standardise with each map's own statistics instead, like the paper's released code.
        smoothing_sigma: Gaussian smoothing of every term map, in pixels of the model's resolution.
        top_k: the image score is the mean of this many highest pixels.
        fusion: how terms make the anomaly map: `sum` of standardised terms (Eq. 11), or `tails`, the sum of their tail
            probabilities in decades (see [`diffad.scoring.tails`]).
        verdict: share of each term in an image score of its own: the mean of the term's highest pixels, standardised by that of
            good images. Empty takes the image score from the anomaly map.
        verdict_area: share of the pixels that are a term's highest.
        scales: further terms, of a model's Gaussians at other scales (`coarse`, `detail`, `coarse_detail`, `neighbors`) and of
            its feature denoiser (`feature_residual`, `pixel_residual`).
        statistics_share: share of the calibration images that give the statistics instead of thresholds, about; see
            [`~diffad.scoring.conformal.images_behind_thresholds`].
        mask_edge: share of a peak's height at which a mask ends; see [`~diffad.scoring.defect_masks.defect_mask`].
        short_side: pixels of the shorter side of images that keep their aspect and are scored in tiles of the model's
            resolution; None resizes every image to the model's resolution, whatever its aspect.
        tile_overlap: share of a tile that neighbours have in common, at least.
        seed: of the noise.

    Raises:
        ValueError: naming the setting that is wrong.
    """

    timesteps: tuple[int, ...] = (20, 201, 401)
    num_inference_steps: int | None = 250
    weights: Mapping[str, float] = field(default_factory=DEFAULT_WEIGHTS.copy)
    standardized_terms: tuple[str, ...] = TERMS
    per_image: bool = False
    smoothing_sigma: float = 4.0
    top_k: int = 1
    fusion: str = "sum"
    verdict: Mapping[str, float] = field(default_factory=dict)
    verdict_area: float = 0.01
    scales: tuple[str, ...] = ()
    statistics_share: float = 0.1
    mask_edge: float | None = None
    short_side: int | None = None
    tile_overlap: float = 0.25
    seed: int = 0

    def __post_init__(self):
        check_timesteps_and_seed(self.timesteps, self.seed)
        if unknown := sorted(set(self.scales) - set(SCALE_TERMS)):
            raise ValueError(f"unknown scales {unknown}; there are {', '.join(SCALE_TERMS)}")
        if unknown := sorted({*self.weights, *self.standardized_terms, *self.verdict} - set(self.all_terms)):
            raise ValueError(f"unknown score terms {unknown}; there are {', '.join(self.all_terms)}")
        if self.fusion not in ("sum", "tails"):
            raise ValueError(f"fusion must be sum or tails, got {self.fusion!r}")
        if self.mask_edge is not None and not 0 < self.mask_edge < 1:
            raise ValueError(
                f"mask_edge must lie between 0 and 1, or be None for the pixels above the threshold alone, got {self.mask_edge}"
            )
        if not 0 < self.statistics_share < 1:
            raise ValueError(f"statistics_share must lie in (0, 1), got {self.statistics_share}")
        if not 0 < self.verdict_area <= 1:
            raise ValueError(f"verdict_area must lie in (0, 1], got {self.verdict_area}")
        if self.per_image and (self.fusion == "tails" or self.verdict):
            raise ValueError("per_image standardises maps alone; fusion by tails and a verdict need statistics of good images")
        if not self.timesteps or not self.weights:
            raise ValueError("a score needs at least one timestep and one weighted term")
        if len(set(self.timesteps)) < len(self.timesteps):
            raise ValueError(f"timesteps {tuple(self.timesteps)} hold one twice")
        if self.top_k < 1 or self.smoothing_sigma < 0:
            raise ValueError(
                f"top_k must be at least 1 and smoothing_sigma at least 0, got {self.top_k} and {self.smoothing_sigma}"
            )
        if not 0 <= self.tile_overlap < 1:
            raise ValueError(f"tile_overlap must lie in [0, 1), got {self.tile_overlap}")

    @property
    def sees_features(self) -> bool:
        """Whether the score looks at features of the whole image, so that pooled ones are at hand."""
        return not FEATURE_TERMS.isdisjoint(self.terms)

    @property
    def needs_statistics(self) -> bool:
        """Whether scores are formed with statistics of good images."""
        return self.fusion == "tails" or bool(self.verdict) or (bool(self.standardized_terms) and not self.per_image)

    @property
    def all_terms(self) -> tuple[str, ...]:
        """Terms that there are, whether or not the score weighs them."""
        return (*TERMS, *self.scales)

    @property
    def map_terms(self) -> tuple[str, ...]:
        """Terms of the anomaly map, in the order of their statistics: a mapping's order does not survive being saved."""
        return tuple(term for term in self.all_terms if term in self.weights)

    @property
    def verdict_terms(self) -> tuple[str, ...]:
        """Terms of the verdict, in the order of their statistics."""
        return tuple(term for term in self.all_terms if term in self.verdict)

    @property
    def terms(self) -> tuple[str, ...]:
        """Terms of the anomaly map and of the verdict."""
        return tuple(term for term in self.all_terms if term in self.weights or term in self.verdict)

    @property
    def term_map_names(self) -> list[str]:
        """`kl@20`, `rgb@20`, ..., `residual`, `mahalanobis`: every term at every timestep, in the order of statistics."""
        return [f"{term}@{t}" for t in self.timesteps for term in TIMESTEP_TERMS] + [
            *TERMS[len(TIMESTEP_TERMS) :],
            *self.scales,
        ]

    @property
    def shares(self) -> dict[str, float]:
        """Share of each term map in the anomaly map: a term's weight is divided among the timesteps."""
        weights = {name: self.weights.get(term_of(name), 0.0) for name in self.term_map_names}
        return {name: weight / len(self.timesteps) if "@" in name else weight for name, weight in weights.items() if weight}


def term_of(term_map_name: str) -> str:
    """`kl` of `kl@20`."""
    return term_map_name.partition("@")[0]


def pixels_of(area: float, pixels: int) -> int:
    """How many pixels a share `area` of so many is; at least one."""
    return max(1, round(area * pixels))


def check_fits_model(config: ScoreConfig, image_size: tuple[int, int], grid: tuple[int, int] | None) -> None:
    """Refuses settings that a model can't be scored with.

    Args:
        image_size: `(height, width)`, the model's resolution.
        grid: positions that the Gaussians were fitted for, None for a shared one.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    if config.top_k > image_size[0] * image_size[1]:
        raise ValueError(f"top_k must be at most {image_size[0] * image_size[1]}, the pixels of a map, got {config.top_k}")
    if config.short_side is None:
        return
    if config.short_side < max(image_size):
        raise ValueError(f"short_side must be at least the model's resolution {max(image_size)}, got {config.short_side}")
    if grid is not None:
        raise ValueError("short_side needs one Gaussian for all positions, which tiles share: train with shared_gaussian")
