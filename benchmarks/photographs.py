"""The photograph table and picture of docs/results.md, with prior=photos."""

import json
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path

import torch
from deepinv.physics import Physics
from pictures import table_of_images
from PIL import Image
from references import best_weight, bicubic, total_variation
from runs import PROJECT, Run, rows_of, run_folder, threads
from safetensors.torch import load_file
from torch import Tensor, nn

from rlsd_lightning import operators
from rlsd_lightning.evaluation.scores import ssim_each
from rlsd_lightning.features import load_lpips
from rlsd_lightning.functional.calibration import total_calibration
from rlsd_lightning.functional.metrics import pixel_std, psnr
from rlsd_lightning.images import ROUNDING, find_images, load_image, to_pil
from rlsd_lightning.priors import StableDiffusionPrior
from rlsd_lightning.results.store import load_run

PRIOR = PROJECT / "data" / "priors" / "photos"
WEIGHTS = (PRIOR,)
PHOTOS = PROJECT / "data" / "photos"
PICTURE = PROJECT / "docs" / "photographs.jpg"
PICTURES = (PICTURE,)
METHODS = {
    "default": [],
    "independent": ["method=independent"],
    "dps": ["method=dps", "num_steps=100"],
    "distilled": ["method=distilled", "num_steps=100"],
    "sds": ["method=sds", "num_steps=100"],
}
REFERENCES = ("bicubic", "tv")
FORMS = ("default", *REFERENCES, *list(METHODS)[1:])
TASK_NAMES = (
    "super-resolution x2",
    "super-resolution x4",
    "Gaussian deblurring",
    "motion deblurring",
    "80 % missing",
    "box missing",
    "denoising",
    "colourisation",
    "JPEG",
)
BOX = 32
"""Side in pixels of the box that is missing."""
COLUMNS = {
    "ground truth": "truth.png",
    "measurement": "measurement.png",
    "no prior": "bicubic.png",
    "TV": "tv.png",
    "particle 1": "particles/00.png",
    "particle 2": "particles/01.png",
    "mean": "mean.png",
    "uncertainty": "std.png",
}
"""Files of the picture by title; bicubic.png is the pseudo-inverse in other tasks than super-resolution."""


@dataclass(frozen=True)
class Task:
    """A task of the package, the function that makes its operator, and this function's arguments."""

    config: str
    operator: str
    settings: dict[str, float | str]

    def physics(self, size: int) -> Physics:
        return getattr(operators, self.operator)((3, size, size), **self.settings)


def all_tasks(out: Path, size: int) -> dict[str, Task]:
    """The tasks by name; blurred photographs have the noise that is usual in the field."""
    box = out / "box.png"
    if not box.is_file():
        mask, start = Image.new("L", (size, size), 255), (size - BOX) // 2
        mask.paste(0, (start, start, start + BOX, start + BOX))
        mask.save(box)
    tasks = (
        Task("super_resolution", "super_resolution", {"factor": 2}),
        Task("super_resolution", "super_resolution", {"factor": 4}),
        Task("gaussian_deblur", "gaussian_blur", {"std": 3 * size / 256, "sigma": 0.05}),
        Task("motion_deblur", "motion_blur", {"sigma": 0.05}),
        Task("inpaint_random", "inpainting", {"mask": "random"}),
        Task("inpaint_box", "inpainting", {"mask": str(box)}),
        Task("denoise", "denoising", {"sigma": 0.2}),
        Task("colorize", "colorization", {}),
        Task("jpeg", "jpeg", {"quality": 10}),
    )
    return dict(zip(TASK_NAMES, tasks, strict=True))


@dataclass(frozen=True)
class PhotoRun(Run):
    """A run with the name of its task, as two tasks share a configuration."""

    name: str = ""

    @property
    def key(self) -> str:
        return f"{self.name}/{self.form}"


class EncoderDistance(nn.Module):
    """Mean square distance of the unit features of the prior's encoder, as LPIPS without learned weights.

    References:
        | The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018)
        | https://arxiv.org/abs/1801.03924
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = StableDiffusionPrior(str(PRIOR), local_files_only=True).vae.encoder

    def features(self, images: Tensor) -> Iterator[Tensor]:
        hidden = self.encoder.conv_in(images)
        for block in self.encoder.down_blocks:
            hidden = block(hidden)
            yield torch.nn.functional.normalize(hidden, dim=1)

    def forward(self, images: Tensor, truth: Tensor) -> Tensor:
        pairs = zip(self.features(images), self.features(truth), strict=True)
        return sum((a - b).square().sum(dim=1).mean() for a, b in pairs)


@cache
def perceptual() -> tuple[str, nn.Module]:
    """LPIPS if its weights are in torch's cache, else :class:`EncoderDistance`; with its name."""
    lpips = load_lpips()
    return (
        ("LPIPS", lpips)
        if lpips is not None
        else ("distance in the features of the prior's encoder", EncoderDistance())
    )


@torch.no_grad()
def image_figures(images: Tensor, truth: Tensor) -> dict[str, float]:
    """Figures of a reconstruction, or of particles, with shape (N, 3, H, W)."""
    each, shown = psnr(images, truth), images.clamp(-1, 1)
    distances = [perceptual()[1](image[None], truth).item() for image in shown]
    return {
        "psnr_mean": each.mean().item(),
        "psnr_best": each.max().item(),
        "psnr_of_mean": psnr(shown.mean(dim=0, keepdim=True), truth).item(),
        "ssim": ssim_each(images, truth).mean().item(),
        "perceptual": sum(distances) / len(distances),
    }


def method_rows(run: PhotoRun, args: Namespace) -> list[dict]:
    """Figures of each photograph of a method's run, which is made if it is not there."""
    seconds = {row["name"]: float(row["seconds"]) for row in rows_of(run, args)}
    rows = []
    for saved in load_run(run_folder(run, args.out)):
        row = {"name": saved.name, **image_figures(saved.images, saved.truth), "seconds": seconds[saved.name]}
        total = total_calibration(saved.images.clamp(-1, 1), saved.shared_variance, saved.truth, resolution=ROUNDING)
        rows.append(
            {**row, "diversity": pixel_std(saved.images.clamp(-1, 1)), "coverage_90": total["total_coverage_90"]}
        )
    return rows


def reference_rows(run: PhotoRun, args: Namespace) -> list[dict]:
    """Figures of each photograph without a trained prior, from the measurements of the default's run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    physics = all_tasks(args.out, args.size)[run.name].physics(args.size).to(device)
    solve, extra = partial(bicubic, image_shape=(3, args.size, args.size)), {}
    if run.form == "tv":
        others = [load_image(path, args.size, args.size).to(device) for path in find_images(args.validation)]
        extra = {"weight": best_weight(physics, others)}
        solve = partial(total_variation, **extra)
    rows = []
    for folder in sorted(
        run_folder(PhotoRun("", "", "default", (), run.name), args.out).glob("*/particles.safetensors")
    ):
        image = solve(physics, load_file(folder)["y"].to(device)).cpu()
        to_pil(image[0]).save(folder.with_name(f"{run.form}.png"))
        truth = load_image(folder.with_name("truth.png"), args.size, args.size)
        rows.append({"name": folder.parent.name, **image_figures(image, truth), **extra})
    return rows


def rows(run: PhotoRun, args: Namespace) -> list[dict]:
    """Figures of each photograph of a run, in a process of its own."""
    torch.set_num_threads(threads(args.jobs))
    return (reference_rows if run.form in REFERENCES else method_rows)(run, args)


def all_runs(args: Namespace) -> Iterator[list[PhotoRun]]:
    """The default's runs, then those that are compared with it."""
    common = ("prior=photos", f"prior.image_size={args.size}", f"data.images={PHOTOS}", "data.limit=null")
    tasks = {name: task for name, task in all_tasks(args.out, args.size).items() if name in args.tasks}
    for forms in (["default"], [form for form in args.forms if form != "default"]):
        yield [
            PhotoRun("", task.config, form, (*common, *physics_options(task), *METHODS.get(form, ())), name)
            for form in forms
            for name, task in tasks.items()
            if form in ("default", *REFERENCES) or name in args.baseline_tasks
        ]


def physics_options(task: Task) -> list[str]:
    """The operator's arguments on the command line."""
    return [f"physics.{key}={value}" for key, value in task.settings.items()]


def draw(args: Namespace) -> None:
    """Photographs by turns of the tasks: the truth, what is known, total variation, two particles, mean, uncertainty."""
    folders = {
        name: sorted(
            file.parent for file in run_folder(PhotoRun("", "", "default", (), name), args.out).glob("*/truth.png")
        )
        for name in args.tasks
    }
    rows = max(len(args.tasks), *map(len, folders.values()))
    shown = [(name, folders[name][row % len(folders[name])]) for row, name in zip(range(rows), cycle(args.tasks))]
    table_of_images(shown, COLUMNS, args.size).save(PICTURE, quality=92)


def make(args: Namespace) -> dict[str, object]:
    """Figures of all runs; what is finished is not made again."""
    partly = args.out / "figures.json"
    found = json.loads(partly.read_text()) if partly.is_file() else {}
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for runs in all_runs(args):
            missing = [run for run in runs if run.key not in found]
            for run, rows_found in zip(missing, pool.map(partial(rows, args=args), missing), strict=True):
                found[run.key] = rows_found
                partly.write_text(json.dumps(found, indent=1) + "\n")
    return {
        "size": args.size,
        "perceptual": perceptual()[0],
        "runs": {run.key: found[run.key] for runs in all_runs(args) for run in runs},
    }
