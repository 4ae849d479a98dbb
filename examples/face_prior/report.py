"""Measures the embedded prior: ``python -m examples.face_prior.report``.

Writes the figures as JSON and two pictures, 64 samples and 64 held-out faces. The Frechet distance is that of
torchmetrics in the class tokens of the embedded feature network, between fresh faces and samples of the empty prompt,
samples of other fresh faces' captions and, for scale, those other fresh faces themselves.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torchvision.utils import make_grid

from examples.face_prior.classifier import AttributeClassifier, load_classifier
from examples.face_prior.faces import ATTRIBUTES, Faces
from rlsd_lightning.evaluation import distances
from rlsd_lightning.evaluation.distances import vit_network
from rlsd_lightning.functional.metrics import psnr
from rlsd_lightning.images import find_images, load_image, to_pil
from rlsd_lightning.priors import StableDiffusionPrior

__all__ = ["PROMPTS", "frechet_distance", "prompt_agreement", "sample"]

PROMPTS: dict[str, tuple[str, str]] = {
    "a face, a beard": ("facial_hair", "beard"),
    "a face, clean shaven": ("facial_hair", "none"),
    "a face, glasses": ("glasses", "yes"),
    "a face, a cap": ("headwear", "cap"),
    "a face, a santa hat": ("headwear", "santa"),
    "a face, long blond hair": ("hair_color", "blond"),
    "a face, bald": ("hair", "bald"),
    "a face, smiling": ("smile", "yes"),
}
"""Prompts, and the attribute and value that each asks for."""


def frechet_distance(classifier: AttributeClassifier, a: Tensor, b: Tensor) -> float:
    """Frechet distance in the feature network between two sets of images in [-1, 1] with shape (n, 3, H, W)."""
    network = vit_network("vit_faces", classifier.features, classifier.vit.config.hidden_size)
    return distances.frechet_distance(network, a, b)


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline, prompts: list[str], guidance_scale: float, steps: int, seed: int
) -> Tensor:
    """One sample of each prompt in [-1, 1], with shape :math:`(n, 3, H, W)`."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for start in range(0, len(prompts), 100):
        images = pipeline(
            prompts[start : start + 100],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generator,
            output_type="pt",
        ).images
        batches.append(images.cpu() * 2 - 1)
    return torch.cat(batches)


def prompt_agreement(classifier: AttributeClassifier, images: Tensor, attribute: str, value: str) -> float:
    """Share of images in which the feature network's head names the value asked for."""
    names = list(ATTRIBUTES)
    predicted = classifier.predict(images)[:, names.index(attribute)]
    return (predicted == ATTRIBUTES[attribute].index(value)).float().mean().item()


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--prior", type=Path, default=Path("data/priors/faces"), help="the pipeline's folder")
    options.add_argument("--features", type=Path, default=Path("data/features/faces"), help="the ViT's folder")
    options.add_argument("--heldout", type=Path, default=Path("data/faces/heldout"), help="held-out faces as pictures")
    options.add_argument("--fresh", type=Path, default=Path("build/faces/fresh"), help="fresh generated faces")
    options.add_argument("--count", type=int, default=2000, help="samples, and faces in each fresh set")
    options.add_argument("--per-prompt", type=int, default=50, help="samples of each prompt")
    options.add_argument("--steps", type=int, default=50, help="DDIM steps")
    options.add_argument("--guidance", type=float, default=3.0, help="guidance scale of the prompts")
    options.add_argument("--out", type=Path, default=Path("docs/prior"), help="folder of the results")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = options.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)

    classifier = load_classifier(args.features)
    pipeline = StableDiffusionPipeline.from_pretrained(args.prior, low_cpu_mem_usage=False).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    prior = StableDiffusionPrior(str(args.prior), local_files_only=True)
    size = prior.image_shape[-1]
    heldout = torch.cat([load_image(file, size, size) for file in find_images(args.heldout)])
    with torch.no_grad():
        reconstruction = prior.decode(prior.encode(heldout))

    fresh = Faces(args.fresh)
    if len(fresh) < 2 * args.count:
        raise SystemExit(f"{2 * args.count} fresh faces are needed in {args.fresh}, got {len(fresh)}")
    faces = torch.stack([fresh[i][0] for i in range(2 * args.count)])
    one, two = faces.chunk(2)
    samples = sample(pipeline, [""] * args.count, 1.0, args.steps, seed=0)
    described = sample(pipeline, fresh.captions[: args.count], 1.0, args.steps, seed=0)
    # sampling noise: what the distance between fresh sets does over five ways to halve them
    floors = []
    for seed in range(5):
        order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(seed))
        floors.append(frechet_distance(classifier, *faces[order].chunk(2)))
    floors = torch.tensor(floors)
    figures = {
        "reconstruction_psnr": psnr(reconstruction, heldout).mean().item(),
        "frechet_samples": frechet_distance(classifier, samples, two),
        "frechet_samples_of_captions": frechet_distance(classifier, described, two),
        "frechet_fresh": floors.mean().item(),
        "frechet_fresh_std": floors.std().item(),
        "frechet_fresh_reconstructed": frechet_distance(classifier, _reconstruct(prior, one), two),
        "samples": args.count,
        "ddim_steps": args.steps,
        "guidance_scale": args.guidance,
        "prompts": {},
    }
    for prompt, (attribute, value) in PROMPTS.items():
        images = sample(pipeline, [prompt] * args.per_prompt, args.guidance, args.steps, seed=1)
        figures["prompts"][prompt] = prompt_agreement(classifier, images, attribute, value)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, images in (("samples", samples), ("heldout", heldout)):
        to_pil(make_grid(images[:64].clamp(-1, 1), nrow=8, pad_value=1)).save(args.out / f"{name}.png")
    print(json.dumps(figures, indent=2))


@torch.no_grad()
def _reconstruct(prior: StableDiffusionPrior, images: Tensor) -> Tensor:
    """What the autoencoder alone leaves of faces: the part of the distance that no denoiser can mend."""
    return torch.cat([prior.decode(prior.encode(batch)).clamp(-1, 1) for batch in images.split(100)])


if __name__ == "__main__":
    main()
