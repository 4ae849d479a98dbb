"""Figures of saved particles, by measurement and by run.

Figures of the paper's protocol have the prefix ``paper_``.
"""

from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlsd_lightning.evaluation.attributes import ATTRIBUTES, SHARES
from rlsd_lightning.evaluation.distances import SetNetwork, frechet_distance, kernel_distance
from rlsd_lightning.evaluation.judge import IMAGE_SIZE, Judge
from rlsd_lightning.evaluation.scores import SMALLEST_SSIM, proper_scores, ssim_each
from rlsd_lightning.features import SMALLEST_LPIPS, ViTFeatures
from rlsd_lightning.functional.calibration import calibration, total_calibration
from rlsd_lightning.functional.metrics import diversity, mode_total_variation, pixel_std, psnr
from rlsd_lightning.functional.sets.coverage import vendi_score
from rlsd_lightning.functional.sets.proper_scores import brier_score
from rlsd_lightning.images import ROUNDING
from rlsd_lightning.measurement import SavedMeasurement

__all__ = [
    "Networks",
    "attribute_figures",
    "attribute_scores",
    "image_figures",
    "paper_image_figures",
    "paper_set_figures",
    "set_figures",
]

FROM_THE_RUN = ("residual", "residual_sigmas", "within_3_sigmas", "seconds")
"""Figures that are copied from metrics.json."""


class Networks(NamedTuple):
    """Networks that images are compared with.

    Attributes:
        name: Suffix of ``vendi_<name>``, unless the judge has it.
        features: Vision transformer.
        sets: Feature network for sets of images.
        lpips: LPIPS metric, if its weights are available.
        judge: Network of faces that no kernel has seen, if the features are the embedded ones; its figures are for faces.
    """

    name: str
    features: ViTFeatures
    sets: SetNetwork
    lpips: nn.Module | None = None
    judge: Judge | None = None

    def judges(self, images: Tensor) -> bool:
        """Whether the judge knows images of this size."""
        return self.judge is not None and images.shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE) and images.shape[1] == 3

    def lpips_of(self, images: Tensor) -> nn.Module | None:
        """The LPIPS metric, if it is known and takes images of this size."""
        return self.lpips if min(images.shape[-2:]) >= SMALLEST_LPIPS else None


def _lpips_each(lpips: nn.Module, images: Tensor, truth: Tensor) -> Tensor:
    """LPIPS of each image, with shape :math:`(N,)`; torchmetrics would average."""
    images, truth = (each.expand(-1, 3, -1, -1) for each in (images.clamp(-1, 1), truth))
    return torch.stack([lpips(image[None], truth) for image in images])


@torch.no_grad()
def image_figures(saved: SavedMeasurement, networks: Networks) -> dict[str, Any]:
    """Figures of one measurement in the default protocol; None where the truth, weights or the noise are unknown.

    They are defined in docs/evaluation.md.
    """
    lpips, truth = networks.lpips_of(saved.images), saved.truth
    images = saved.images if saved.aligned is None else saved.aligned
    shown = images.clamp(-1, 1)
    figures: dict[str, Any] = {"particles": len(images)}
    metrics = {"psnr": psnr}
    metrics["ssim"] = ssim_each if min(images.shape[-2:]) >= SMALLEST_SSIM else None
    metrics["lpips"] = None if lpips is None else lambda a, b: _lpips_each(lpips, a, b)
    for name, metric in metrics.items():
        figures |= dict.fromkeys((f"{name}_mean", f"{name}_best", f"{name}_of_mean"))
        if metric is not None and truth is not None:
            each = metric(images, truth)
            best = each.min() if name == "lpips" else each.max()
            of_mean = metric(images.mean(dim=0, keepdim=True), truth)
            values = (each.mean(), best, of_mean.mean())
            figures |= {f"{name}_{end}": v.item() for end, v in zip(("mean", "best", "of_mean"), values, strict=True)}
    if networks.judges(shown):
        figures["vendi_judge"] = vendi_score(networks.judge.features(shown)).item()
    else:
        figures[f"vendi_{networks.name}"] = vendi_score(networks.features(None, images)).item()
    hidden = None if saved.observed is None else ~saved.observed
    figures["pixel_std"] = pixel_std(shown)
    figures["pixel_std_unobserved"] = None if hidden is None else pixel_std(shown, hidden)
    figures["lpips_pairs"] = None if lpips is None else _lpips_of_pairs(lpips, shown)
    if truth is not None:
        figures["region"] = "all" if hidden is None else "unobserved"
        if len(shown) > 1 and (hidden is None or hidden.any()):
            figures |= {name: value.item() for name, value in proper_scores(shown, truth, hidden).items()}
        if len(shown) > 1:
            figures |= attribute_scores(shown, truth, networks.judge) if networks.judges(shown) else {}
        figures |= calibration(shown, truth, hidden, ROUNDING)
        figures |= total_calibration(shown, saved.shared_variance, truth, hidden, ROUNDING)
    return figures | {name: saved.metrics.get(name) for name in FROM_THE_RUN}


def _lpips_of_pairs(lpips: nn.Module, images: Tensor) -> float | None:
    pairs = list(combinations(range(len(images)), 2))
    if not pairs:
        return None
    return sum(_lpips_each(lpips, images[i : i + 1], images[j : j + 1]).item() for i, j in pairs) / len(pairs)


def set_figures(images: Tensor, reference: Tensor | None, networks: Networks) -> dict[str, Any]:
    """Distances of all particles of a run from a reference set; None without one.

    Args:
        images: Particles of all measurements, with shape :math:`(n, 3, H, W)`.
        reference: Reference images, with shape :math:`(m, 3, H, W)`; at least two are needed.
        networks: Networks with the one for sets of images.
    """
    known = reference is not None and min(len(images), len(reference)) > 1
    return {
        f"{name}_{networks.sets.name}": distance(networks.sets, reference, images) if known else None
        for name, distance in (("fid", frechet_distance), ("kid", kernel_distance))
    }


@torch.no_grad()
def attribute_scores(images: Tensor, truth: Tensor, judge: Judge) -> dict[str, float]:
    """Fair Brier score of each attribute's shares among the particles, ``<attribute>_brier``, as the judge sees them."""
    labels, known = judge.predict(images), judge.predict(truth)
    columns = {name: list(ATTRIBUTES).index(name) for name in SHARES}
    return {
        f"{name}_brier": brier_score(labels[:, i], known[:, i], len(SHARES[name])).item() for name, i in columns.items()
    }


@torch.no_grad()
def attribute_figures(images: Tensor, truth: Tensor | None, judge: Judge) -> dict[str, Any]:
    """Shares of faces' attribute values as the judge sees them, compared with the generator's.

    Args:
        images: Particles, with shape :math:`(n, 3, H, W)`.
        truth: Clean images; their errors show those of the judge and of a finite sample.
        judge: Classifier of the attributes.

    Returns:
        ``<attribute>_shares``, in the order of the attribute's values, and ``<attribute>_error``, their total variation
        from the generator's shares; with the suffix ``_truth``, the same of the truth.
    """
    sets = {"": images} if truth is None else {"": images, "_truth": truth}
    labels = {end: torch.cat([judge.predict(b) for b in faces.split(256)]) for end, faces in sets.items()}
    figures = {}
    for name, shares in SHARES.items():
        for end, every in labels.items():
            column = every[:, list(ATTRIBUTES).index(name)]
            counts = torch.bincount(column, minlength=len(shares))
            figures[f"{name}_shares{end}"] = [round(share, 3) for share in (counts / len(column)).tolist()]
            figures[f"{name}_error{end}"] = mode_total_variation(column, torch.tensor(shares)).item()
    return figures


def _in_unit_range(images: Tensor) -> Tensor:
    """Images in [0, 1]."""
    return images.clamp(-1, 1) / 2 + 0.5


@torch.no_grad()
def paper_image_figures(saved: SavedMeasurement, networks: Networks) -> dict[str, Any]:
    """Figures of one measurement as the paper's authors computed them.

    Each metric takes its own best particle, without alignment. LPIPS and the features see images in [0, 1] at their own
    size, so these figures are lower than the default protocol's.

    Returns:
        ``paper_psnr_max``, ``paper_lpips_min`` (None without weights or for small images) and ``paper_diversity_<network>``.
    """
    unit, truth = _in_unit_range(saved.images), _in_unit_range(saved.truth)
    lpips = networks.lpips_of(unit)
    return {
        "particles": len(unit),
        "paper_psnr_max": psnr(saved.images, saved.truth).max().item(),
        "paper_lpips_min": None if lpips is None else _lpips_each(lpips, unit, truth).min().item(),
        f"paper_diversity_{networks.name}": diversity(networks.features(None, unit)).item(),
    }


@torch.no_grad()
def paper_set_figures(saved: list[SavedMeasurement], reference: Tensor, networks: Networks) -> dict[str, Any]:
    """The paper's FID, over each measurement's particle of least LPIPS, or its first one without LPIPS weights."""
    lpips = networks.lpips_of(saved[0].images)
    if lpips is None:
        chosen, end = [one.images[0] for one in saved], "one_particle"
    else:
        best = [_lpips_each(lpips, _in_unit_range(one.images), _in_unit_range(one.truth)).argmin() for one in saved]
        chosen, end = [one.images[index] for one, index in zip(saved, best, strict=True)], "best_lpips"
    known = min(len(chosen), len(reference)) > 1
    value = frechet_distance(networks.sets, reference, torch.stack(chosen)) if known else None
    return {f"paper_fid_{networks.sets.name}_{end}": value}
