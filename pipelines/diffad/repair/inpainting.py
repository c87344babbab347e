"""Our repair: denoising of what the anomaly map marks."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch

from ..scoring.integers import check_timesteps_and_seed
from .attempts import BestAttempt, score_attempt
from .confidence import is_told
from .context import OnStep, RepairContext, RepairResult
from .cycle_spinning import cycle_spin
from .fill import fill_from_surroundings, structure_weight
from .gradient_denoising import mahalanobis_loss
from .mask import defect_region, differs_from_prediction, soft_edge
from .proposals import GrowthLimit, aligned_contents, blend_in_windows, grow_with_contents
from .texture import transfer_texture
from .windows import Window, cut_windows, in_rounds, paste_windows, repair_masks, repair_windows

SHADE_SIGMA = 4.0  # pixels of the Gaussian mean that shows faint shades


@dataclass(frozen=True)
class Inpainting:
    """Denoising where the anomaly map says there is a defect, and nowhere else (ours).

    The marked region is filled from its surroundings, then noised and denoised at falling noise levels with the input put back
    outside each time, so that structure returns first and detail last; the last level looks at the image in several frames
    ([`diffad.repair.cycle_spinning`]). A border zone around the region, where the map is lower, keeps its content but for what
    differs from the denoised image, such as the faint ends of a scratch. Where the fill and the denoised image agree but for
    what the denoiser errs, the fill stays. Texture, which both lack, is transferred from the image's surroundings where that
    lowers Eq. 12. An image that scores as normal is returned as it is. One that still scores as defective gets another attempt
    with what is marked then added to the region; of all attempts the one with the lowest score counts.

    Images larger than the model's resolution are repaired at their size in the windows of [`diffad.repair.windows`]: one around
    each marked region with its border zone, for large regions several, of which each sees what the earlier ones have made of
    their part.

    Where the model has images of good parts, or tiles of them, what was replaced is also taken in each window from the same
    place of some of them, and from elsewhere in the window itself ([`diffad.repair.proposals`]). The best content of every
    window makes one more attempt, the second-best another, and so on. So structure comes back that no mean of all good parts
    has.

    Args:
        timesteps: noise levels, descending.
        spins: shifted frames over which the last noise level averages.
        denoiser_error: root mean square, in the range [-1, 1], of the difference to the fill that is taken for an error.
        texture_strength: of the texture in the first attempt; further attempts transfer it whole. 0 is none, ever. Its pattern
            is not the one that was there, so that every bit of it takes the repaired place away from the true one, while
            without any it looks blurred.
        region_level: pixels of a region exceed this share of the pixel threshold; it must reach above the threshold itself.
        peak_share: and this share of the region's own peak.
        border_share: the same for the border zone.
        border_difference: from which difference to the denoised image, in the range [-1, 1], the border zone is repaired.
        margin: pixels by which region and border zone are widened, at the resolution of the anomaly map.
        attempts: how often the region is found anew.
        proposals: how many contents from good images each attempt tries at most.
        content: `best` tries each of these contents, `mean` their mean, which is nearer to the true image and more blurred.
        reference_difference: from which difference to all these contents what adjoins a region is repaired with it.
        shade_difference: the same for the mean difference over some pixels, which shows faint shades.
        reference_factor: and, for both, from which multiple of the upper quartile of the differences around the region; see
            [`diffad.repair.proposals`].
        most_enclosed: share of the image up to which what marks and repair enclose counts as told by the rest.

    Raises:
        ValueError: if a setting is out of its range.
    """

    timesteps: tuple[int, ...] = (490, 300, 150, 50)
    spins: int = 4
    denoiser_error: float = 0.06
    texture_strength: float = 0.4
    region_level: float = 0.7
    peak_share: float = 0.6
    border_share: float = 0.3
    border_difference: float = 0.3
    margin: int = 4
    attempts: int = 2
    proposals: int = 3
    content: Literal["best", "mean"] = "best"
    reference_difference: float = 0.1
    shade_difference: float = 0.02
    reference_factor: float = 2.0
    most_enclosed: float = 0.2

    def __post_init__(self):
        check_timesteps_and_seed(self.timesteps)
        if not self.timesteps:
            raise ValueError("timesteps must hold at least one noise level")
        at_least_0 = [field.name for field in fields(self) if field.name not in ("timesteps", "spins", "content")]
        for name, lowest in (("spins", 1), *((name, 0) for name in at_least_0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if self.content not in ("best", "mean"):
            raise ValueError(f"content must be best or mean, got {self.content!r}")

    def run(self, images: torch.Tensor, context: RepairContext, on_step: OnStep) -> RepairResult:
        """Repairs those of the images `(B, 3, H, W)` that score as defective.

        Raises:
            ValueError: if a noise level is not in the chain, or a score is not finite.
        """
        context.check_timesteps(self.timesteps)
        region, border = torch.zeros_like(images[:, :1]), torch.zeros_like(images[:, :1])  # (B, 1, H, W), of all attempts
        best = BestAttempt(images)
        repaired = images  # (B, 3, H, W)
        first_map, score = score_attempt(images, region, context)  # (B, H, W), (B,)
        is_good = score <= context.image_threshold  # (B,)
        defective = (~is_good).nonzero()[:, 0]  # (D,), indices of the images to repair
        anomaly_map = first_map[defective]  # (D, H, W)
        for attempt in range(self.attempts):
            if len(defective) == 0:
                more = int(self._takes_from_references(context))
                repaired = self._change_nothing(repaired, on_step, len(self.timesteps) + 1 + more)
                continue
            threshold = context.select(defective).pixel_threshold  # (D,)
            for mask, share in ((region, self.peak_share), (border, self.border_share)):
                mask[defective] = torch.maximum(mask[defective], self.find_region(anomaly_map, threshold, share))
            windows = _windows_around(torch.maximum(region, border), defective, context.size)
            contents: list[torch.Tensor] = []  # of each window, (k, 3, h, w)
            if self._takes_from_references(context):
                windows, contents = self._contents(images, region, border, windows, context)
            # Further attempts start from the input again, and transfer texture whole.
            repaired = repaired.index_copy(0, defective, images[defective])
            method = replace(self, texture_strength=1.0) if attempt and self.texture_strength else self
            repaired, replaced = method._repair(repaired, region, windows, context, on_step)
            of_defective = context.select(defective)
            anomaly_map, score = score_attempt(repaired[defective], replaced[defective], of_defective)  # (D, H, W), (D,)
            best.update(defective, repaired[defective], replaced[defective], score)
            if self._takes_from_references(context):
                marked = torch.maximum(region, replaced)  # (B, 1, H, W)
                self._try_contents(images, repaired, marked, windows, contents, context, best)
                repaired = best.images = on_step(best.images)
            still_defective = best.loss[defective] > context.image_threshold[defective]  # (D,)
            defective, anomaly_map = defective[still_defective], anomaly_map[still_defective]
        told = is_told(first_map, context.pixel_threshold, best.replaced, self.most_enclosed)  # (B,)
        confident = is_good | (told & (best.loss <= context.image_threshold))
        return RepairResult(best.images, soft_edge(best.replaced), confident)

    def find_region(self, anomaly_map: torch.Tensor, threshold: torch.Tensor, peak_share: float) -> torch.Tensor:
        """`(B, 1, H, W)`, 1 where the map `(B, H, W)` shows a defect down to a share of its peak."""
        return defect_region(anomaly_map, threshold, self.region_level, peak_share, self.margin)

    def _change_nothing(self, images: torch.Tensor, on_step: OnStep, steps: int) -> torch.Tensor:
        """The steps of an attempt without change, so that their number does not depend on what else is in the batch."""
        for _ in range(steps):
            images = on_step(images)
        return images

    def _takes_from_references(self, context: RepairContext) -> bool:
        return self.proposals > 0 and context.references is not None

    @property
    def growth_limits(self) -> tuple[GrowthLimit, ...]:
        """At which scales, and from which differences on, a region grows along what good images contradict."""
        scales = ((1.0, self.reference_difference), (SHADE_SIGMA, self.shade_difference))
        return tuple(GrowthLimit(sigma, least, self.reference_factor) for sigma, least in scales)

    def _contents(
        self,
        images: torch.Tensor,
        region: torch.Tensor,
        border: torch.Tensor,
        windows: Sequence[Window],
        context: RepairContext,
    ) -> tuple[list[Window], list[torch.Tensor]]:
        """What good images hold in each window; `region` `(B, 1, H, W)` grows, in place, along what all of it contradicts.

        Returns:
            The windows, which repair what was added, too, and the contents of each, `(k, 3, h, w)`.
        """
        grown, contents = [], []
        for window in windows:
            pixels, inside = images[window.index], region[window.index]  # (3, h, w), (1, h, w)
            found = pixels[None][:0]
            if inside.any():  # there are windows of nothing but border zone
                found = aligned_contents(pixels, inside, context.references, context.parts_turn, self.proposals)
                inside, found = grow_with_contents(pixels, inside, found, self.growth_limits)
            added = (inside > torch.maximum(region, border)[window.index])[0].cpu().numpy()  # (h, w), in no window yet
            grown.append(replace(window, to_repair=window.to_repair | added))
            contents.append(found)
            region[window.index] = inside
        return grown, contents

    def _try_contents(
        self,
        images: torch.Tensor,
        denoised: torch.Tensor,
        marked: torch.Tensor,
        windows: Sequence[Window],
        contents: Sequence[torch.Tensor],
        context: RepairContext,
        best: BestAttempt,
    ) -> None:
        """Attempts at images `(B, 3, H, W)`, with what is marked `(B, 1, H, W)` taken from the contents of each window.

        A window without contents takes the denoised image.
        """
        for index in sorted({window.image for window, found in zip(windows, contents, strict=True) if len(found)}):
            own = [(window, found) for window, found in zip(windows, contents) if window.image == index]
            found = [found if len(found) else denoised[window.index][None] for window, found in own]
            tried = blend_in_windows(images[index], marked[index], [window for window, _ in own], found)  # (k, 3, H, W)
            if self.content == "mean":
                tried = tried.mean(dim=0, keepdim=True)  # (1, 3, H, W)
            image = torch.tensor([index], device=images.device)
            replaced = marked[index].expand(len(tried), -1, -1, -1)  # (k, 1, H, W)
            _, scores = score_attempt(tried, replaced, context.select(image.expand(len(tried))))  # (k,)
            lowest = scores.argmin()[None]
            best.update(image, tried[lowest], marked[index][None], scores[lowest])

    def _repair(
        self, images: torch.Tensor, region: torch.Tensor, windows: list[Window], context: RepairContext, on_step: OnStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One attempt: repairs `region` `(B, 1, H, W)` and its border zone in images `(B, 3, H, W)`, window by window.

        Returns:
            `(B, 3, H, W)` repaired images, and `(B, 1, H, W)`, 1 where something was replaced.
        """
        unrepaired = region.clone()  # (B, 1, H, W), 1 on defect that no window has repaired yet
        replaced = torch.zeros_like(region)  # (B, 1, H, W)
        for apart in in_rounds(windows):
            images, changed = self._repair_windows(images, unrepaired, apart, context, on_step)  # changed: (N, 1, h, w)
            for window, changed_in_window in zip(apart, changed, strict=True):
                replaced[window.index] = torch.maximum(replaced[window.index], changed_in_window)
                unrepaired[window.index] *= torch.from_numpy(~window.to_repair).to(unrepaired)
        return images, replaced

    def _repair_windows(
        self, images: torch.Tensor, unrepaired: torch.Tensor, windows: list[Window], context: RepairContext, on_step: OnStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Repairs what is to be repaired in N windows that don't overlap, side by side as one batch.

        Args:
            images: `(B, 3, H, W)`, where earlier windows have repaired their part.
            unrepaired: `(B, 1, H, W)`, 1 on defect of these and later windows, from which nothing is filled or copied.

        Returns:
            `(B, 3, H, W)` images with the windows repaired, and `(N, 1, h, w)`, 1 where something in them was replaced.
        """
        inputs, unrepaired = cut_windows(images, windows), cut_windows(unrepaired, windows)  # (N, 3, h, w), (N, 1, h, w)
        context = context.select(torch.tensor([window.image for window in windows], device=inputs.device))
        changed = repair_masks(windows, inputs)  # (N, 1, h, w), in the border zone narrowed level by level
        region = changed * unrepaired  # (N, 1, h, w)

        current = torch.where(region > 0, fill_from_surroundings(inputs, unrepaired), inputs)  # (N, 3, h, w)
        spins_of_level = [1] * (len(self.timesteps) - 1) + [self.spins]
        for t, spins in zip(self.timesteps, spins_of_level, strict=True):
            denoised = _denoise(current, t, spins, context)  # (N, 3, h, w)
            differs = differs_from_prediction(inputs, denoised, self.border_difference)  # (N, 1, h, w)
            changed = torch.maximum(region, changed * differs)
            opacity = soft_edge(changed)  # (N, 1, h, w)
            images = on_step(paste_windows(images, torch.lerp(inputs, denoised, opacity), windows))  # (B, 3, H, W)
            current = cut_windows(images, windows)

        filled = fill_from_surroundings(inputs, torch.maximum(unrepaired, changed))  # (N, 3, h, w)
        weight = structure_weight(denoised, filled, changed, self.denoiser_error)  # (N, 1, h, w)
        smooth = torch.lerp(inputs, torch.lerp(filled, denoised, weight), opacity)  # (N, 3, h, w)
        texture = transfer_texture(inputs, denoised, weight, self.denoiser_error, changed, opacity, unrepaired)
        textured = smooth + self.texture_strength * opacity * texture  # (N, 3, h, w)
        gain = mahalanobis_loss(context.distance(smooth)) - mahalanobis_loss(context.distance(textured))  # (N,)
        repaired = torch.where(gain.view(-1, 1, 1, 1) > 0, textured, smooth)
        return on_step(paste_windows(images, repaired, windows)), changed


def _windows_around(marked: torch.Tensor, indices: torch.Tensor, size: tuple[int, int]) -> list[Window]:
    """Windows of a size in which what is marked in images `(B, 1, H, W)` of some indices is repaired."""
    marked = marked[:, 0].bool().cpu().numpy()  # (B, H, W)
    return [window for i in indices.tolist() for window in repair_windows(marked[i], size, i)]


def _denoise(images: torch.Tensor, t: int, spins: int, context: RepairContext) -> torch.Tensor:
    """Images `(N, 3, h, w)` noised to timestep t and denoised in one pass, mean over shifted frames."""
    return cycle_spin(lambda frame: context.predict_x0(context.add_noise(frame, t), t), images, context.stride, spins)
