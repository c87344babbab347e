"""Our repair: denoising of what the anomaly map marks."""

from dataclasses import dataclass, replace

import torch

from .context import Reconstruction, RepairContext, Report
from .cycle_spinning import cycle_spin
from .fill import fill_from_surroundings, structure_weight
from .gradient_denoising import mahalanobis_loss
from .mask import contradicted, defect_region, soft_edge
from .texture import transfer_grain
from .windows import Window, in_turns, repair_windows


@dataclass(frozen=True)
class Repair:
    """Denoising where the anomaly map says there is a defect, and nowhere else (ours).

    The marked region is filled from its surroundings, then noised and denoised at falling noise levels with the input put back
    outside each time, so that structure returns first and detail last; the last level looks at the image in several frames
    ([`diffad.repair.cycle_spinning`]). A halo around the region, where the map is lower, keeps its content but for what the denoised
    image contradicts, such as the faint ends of a scratch. Where the fill and the denoised image agree but for what the
    denoiser errs, the fill stays. Grain, which both lack, is borrowed from the image's surroundings where that lowers Eq. 12.
    An image that scores as normal is returned as it is. One that still scores as defective gets another go with what is marked
    then added to the region; of all goes the one with the lowest score counts.

    Images larger than the model's resolution are repaired at their size in the windows of [`diffad.repair.windows`]: one around each
    marked region with its halo, for large regions several, of which each sees what the earlier ones have made of their part.

    Args:
        timesteps: noise levels, descending.
        spins: shifted frames over which the last noise level averages.
        denoiser_error: root mean square, in the range [-1, 1], of the difference to the fill that is taken for an error.
        grain: strength of the borrowed grain in the first go; further goes borrow it whole. 0 is none, ever. Its pattern is not
            the one that was there, so that every bit of it takes the repaired place away from the true one, while without any
            it looks blurred.
        region_level: pixels of a region exceed this share of the pixel threshold; it must reach above the threshold itself.
        peak_share: and this share of the region's own peak.
        halo_share: the same for the halo.
        contrast: difference to the denoised image, in the range [-1, 1], from which pixels of the halo are repaired.
        margin: pixels by which region and halo are widened, at the resolution of the anomaly map.
        attempts: how often the region is found anew.
    """

    timesteps: tuple[int, ...] = (490, 300, 150, 50)
    spins: int = 4
    denoiser_error: float = 0.06
    grain: float = 0.4
    region_level: float = 0.7
    peak_share: float = 0.6
    halo_share: float = 0.3
    contrast: float = 0.3
    margin: int = 4
    attempts: int = 2

    def run(self, images: torch.Tensor, models: RepairContext, report: Report) -> Reconstruction:
        region = halo = replaced = torch.zeros_like(images[:, :1])  # (B, 1, H, W)
        repaired = images  # (B, 3, H, W)
        best = _Best(images, replaced)
        active = torch.arange(len(images), device=images.device)  # the images that score as defective
        for attempt in range(self.attempts + 1):
            if len(active):
                selected = models.select(active)
                anomaly_map, score = _judge(repaired[active], selected)
                if attempt:
                    best.update(active, repaired, replaced, score)
                defective = score > selected.image_threshold
                active, anomaly_map = active[defective], anomaly_map[defective]
            if attempt == self.attempts:
                break
            if len(active) == 0:
                # As many steps whatever the batch.
                for _ in range(len(self.timesteps) + 1):
                    repaired = report(repaired)
                continue
            threshold = models.select(active).pixel_threshold
            found = self.find_region(anomaly_map, threshold, self.peak_share)
            region = region.index_copy(0, active, torch.maximum(region[active], found))
            found = self.find_region(anomaly_map, threshold, self.halo_share)
            halo = halo.index_copy(0, active, torch.maximum(halo[active], found))
            go = replace(self, grain=1.0) if attempt and self.grain else self
            repaired, replaced = go._repair(images, repaired, region, halo, active, models, report)
        return Reconstruction(best.images, soft_edge(best.replaced))

    def find_region(self, anomaly_map: torch.Tensor, threshold: torch.Tensor, peak_share: float) -> torch.Tensor:
        """`(B, 1, H, W)`, 1 where the map `(B, H, W)` shows a defect down to a share of its peak."""
        return defect_region(anomaly_map, threshold, self.region_level, peak_share, self.margin)

    def _repair(
        self, images, repaired, region, halo, active, models: RepairContext, report: Report
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`repaired` with the active images repaired anew from `images`, and `(B, 1, H, W)` where these are replaced."""
        repaired, left_over, replaced = repaired.index_copy(0, active, images[active]), region.clone(), torch.zeros_like(region)
        marked = torch.maximum(region, halo)[:, 0].bool().cpu().numpy()
        windows = [window for i in active.tolist() for window in repair_windows(marked[i], models.size, i)]
        for turn in in_turns(windows):
            repaired, replaced = self._repair_windows(repaired, replaced, left_over, turn, models, report)
            for window in turn:
                left_over[window.place] *= torch.from_numpy(~window.own).to(left_over)
        return repaired, replaced

    def _repair_windows(
        self, images, replaced, unsound, windows: list[Window], models: RepairContext, report: Report
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`images` and `replaced` with the windows' own pixels repaired; fill and grain shun all that are `unsound`."""
        inputs, unsound = _cut(images, windows), _cut(unsound, windows)  # (windows, C, *size)
        own = torch.stack([torch.from_numpy(window.own)[None] for window in windows]).to(inputs)
        region = own * unsound
        models = models.select(torch.tensor([window.image for window in windows], device=inputs.device))
        repaired = torch.where(region > 0, fill_from_surroundings(inputs, unsound), inputs)
        for level, t in enumerate(self.timesteps, start=1):
            spins = self.spins if level == len(self.timesteps) else 1
            denoised = cycle_spin(
                lambda frame, t=t: models.predict_x0(models.add_noise(frame, t), t), repaired, models.stride, spins
            )
            own = torch.maximum(region, own * contradicted(inputs, denoised, self.contrast))
            opacity = soft_edge(own)
            images = report(_put(images, torch.lerp(inputs, denoised, opacity), windows))
            repaired = _cut(images, windows)
        filled = fill_from_surroundings(inputs, torch.maximum(unsound, own))
        weight = structure_weight(denoised, filled, own, self.denoiser_error)
        repaired = torch.lerp(inputs, torch.lerp(filled, denoised, weight), opacity)
        replaced = _put(replaced, torch.maximum(_cut(replaced, windows), own), windows)
        grain = transfer_grain(inputs, denoised, weight, self.denoiser_error, own, opacity, unsound)
        grained = repaired + self.grain * opacity * grain
        gain = mahalanobis_loss(models.distance(repaired)) - mahalanobis_loss(models.distance(grained))  # (windows,)
        return report(_put(images, torch.where(gain.view(-1, 1, 1, 1) > 0, grained, repaired), windows)), replaced


class _Best:
    """Of several goes, for each image the one with the lowest score: its image and where it is replaced."""

    def __init__(self, images: torch.Tensor, replaced: torch.Tensor):
        self.images, self.replaced = images, replaced
        self.score = torch.full_like(images[:, 0, 0, 0], torch.inf)

    def update(self, tried: torch.Tensor, images: torch.Tensor, replaced: torch.Tensor, score: torch.Tensor) -> None:
        """Keeps what has improved: `images` and `replaced` are of the whole batch, `score` of the indices `tried`."""
        improved = score < self.score[tried]
        chosen = tried[improved]
        self.images = self.images.index_copy(0, chosen, images[chosen])
        self.replaced = self.replaced.index_copy(0, chosen, replaced[chosen])
        self.score = self.score.index_copy(0, chosen, score[improved])


def _judge(images: torch.Tensor, models: RepairContext) -> tuple[torch.Tensor, torch.Tensor]:
    """Anomaly maps `(B, H, W)` and scores `(B,)`."""
    anomaly_map = models.anomaly_map(images)
    score = models.image_score(anomaly_map)
    if not score.isfinite().all():
        # It would pass for normal.
        raise ValueError("the score of an image is not finite; use float32 or bfloat16 weights")
    return anomaly_map, score


def _cut(images: torch.Tensor, windows: list[Window]) -> torch.Tensor:
    return torch.stack([images[window.place] for window in windows])


def _put(images: torch.Tensor, parts: torch.Tensor, windows: list[Window]) -> torch.Tensor:
    images = images.clone()
    for window, part in zip(windows, parts, strict=True):
        images[window.place] = part
    return images
