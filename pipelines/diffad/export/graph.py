"""The score of a pipeline as an ONNX graph of standard operators, from image to verdict."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ..models.discriminant import LinearDiscriminant
from ..models.feature_extractor import FeatureExtractor
from ..runtime.description import POOLED_FEATURES, TERM_MAP
from ..scoring.config import term_of
from ..scoring.scorer import Scorer

if TYPE_CHECKING:
    import onnx

OPSET = 20
BATCH = 2  # of the traced inputs; the graph takes any
LARGEST_BATCH = 63  # that PyTorch's tracing is told of: diffusers copies larger ones; the graph has no such limit


class ScoreGraph(torch.nn.Module):
    """Images to `(anomaly_map (B, H, W), image_score (B,), *standardised term maps (B, H, W), pooled_features (B, D))`.

    Pooled features are left out where the score does not look at them.
    """

    def __init__(self, scorer: Scorer, term_maps: Sequence[str] = ()):
        super().__init__()
        self.scorer, self.names = scorer, list(term_maps)

    def forward(
        self, image: torch.Tensor, detail: torch.Tensor | None = None, category: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Scores `image` `(B, 3, H, W)` in [0, 1], and `detail` `(B, 3, 2 H, 2 W)`, the same enlarged, by `category` `(B,)`."""
        terms = self.scorer.config.all_terms if self.names else None
        score = self.scorer(2 * image - 1, category, terms, detail=None if detail is None else 2 * detail - 1)
        pooled = [score.pooled_features] if self.scorer.config.sees_features else []
        return score.anomaly_maps, score.image_scores, *(score.term_maps[name] for name in self.names), *pooled


class TileGraph(torch.nn.Module):
    """Tiles to the raw term maps `(B, h, w)` that the score needs, which are blended and fused outside the graph, and to the
    tiles' pooled features `(B, D)` as of [`ScoreGraph`]."""

    def __init__(self, scorer: Scorer):
        super().__init__()
        self.scorer = scorer

    @property
    def names(self) -> list[str]:
        """Names of the term maps, in the order of what is returned."""
        config = self.scorer.config
        return [name for name in config.term_map_names if term_of(name) in config.terms]

    def forward(self, image: torch.Tensor, category: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Term maps of tiles `(B, 3, h, w)` in [0, 1] under the Gaussians of `category` `(B,)`."""
        maps, pooled = self.scorer.measure_tiles(2 * image - 1, category, self.scorer.config.terms)
        return *(maps[name] for name in self.names), *([pooled] if self.scorer.config.sees_features else [])


class CategoryGraph(torch.nn.Module):
    """Tiles `(N, tiles, 3, h, w)` of N images to `(category (N,), is_unknown (N,))`."""

    def __init__(self, extractor: FeatureExtractor, discriminant: LinearDiscriminant):
        super().__init__()
        self.extractor, self.discriminant = extractor, discriminant

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.extractor(2 * tiles.flatten(0, 1) - 1).mean(dim=(2, 3))  # (N tiles, D)
        pooled = pooled.unflatten(0, tiles.shape[:2]).mean(dim=1)
        return self.discriminant.scores(pooled).argmax(dim=1), self.discriminant.is_unknown(pooled)


@torch.no_grad()
def trace(
    module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str], dynamic: Mapping[str, dict]
) -> "onnx.ModelProto":
    """An ONNX model of a module.

    Args:
        inputs: examples, by argument.
        outputs: names of what it returns.
        dynamic: for every input the names of the dimensions that may vary, by index.

    Raises:
        ModuleNotFoundError: naming the packages where they are not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError("export needs further packages: pip install 'diffad[export]'") from None
    dims: dict[str, torch.export.Dim] = {}
    for of_input in dynamic.values():
        for name in of_input.values():
            dims.setdefault(name, torch.export.Dim(name, max=LARGEST_BATCH))
    shapes = {name: {i: dims[dim] for i, dim in dynamic.get(name, {}).items()} for name in inputs}
    exported = torch.export.export(module.eval(), (), dict(inputs), dynamic_shapes=shapes)
    names = {"input_names": list(inputs), "output_names": list(outputs)}
    program = torch.onnx.export(exported, dynamo=True, opset_version=OPSET, verbose=False, **names)
    return program.model_proto


def score_inputs(scorer: Scorer, has_categories: bool) -> dict[str, torch.Tensor]:
    """Example inputs of a score's graph, of its image size."""
    generator = torch.Generator().manual_seed(0)
    is_tiled = scorer.config.short_side is not None
    inputs = {"image": torch.rand(BATCH, 3, *scorer.image_size, generator=generator)}
    if scorer.detail_size is not None and not is_tiled:
        inputs["detail"] = torch.rand(BATCH, 3, *scorer.detail_size, generator=generator)
    if has_categories:
        inputs["category"] = torch.arange(BATCH)
    return inputs


def score_graph(scorer: Scorer, has_categories: bool, term_maps: Sequence[str] = ()) -> "onnx.ModelProto":
    """The graph of a scorer; of a model of tiles that of one tile."""
    inputs = score_inputs(scorer, has_categories)
    dynamic = {name: {0: "batch"} for name in inputs}
    pooled = [POOLED_FEATURES] if scorer.config.sees_features else []
    if scorer.config.short_side is not None:
        module = TileGraph(scorer)
        return trace(module, inputs, [*(TERM_MAP + name for name in module.names), *pooled], dynamic)
    outputs = ["anomaly_map", "image_score", *(TERM_MAP + name for name in term_maps), *pooled]
    return trace(ScoreGraph(scorer, term_maps), inputs, outputs, dynamic)


def category_graph(extractor: FeatureExtractor, discriminant: LinearDiscriminant, size: tuple[int, int]) -> "onnx.ModelProto":
    """The graph that recognises categories."""
    inputs = {"tiles": torch.rand(BATCH, BATCH, 3, *size, generator=torch.Generator().manual_seed(0))}
    module = CategoryGraph(extractor, discriminant)
    return trace(module, inputs, ["category", "is_unknown"], {"tiles": {0: "batch", 1: "tiles"}})
