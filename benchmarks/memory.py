"""Peak memory of one step with the true architecture of Stable Diffusion 1.5 (random weights).

python benchmarks/memory.py --json memory.json

For N = 1 and N = 4 particles, all at once, in chunks of one, and with a decoder that recomputes its activations, prints
the peak of one training step at 512x512 above what the weights take, and the step's seconds. On a GPU the peak is the
allocator's; on a CPU each form runs in a process of its own and the peak is the process's resident memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from rlsd_lightning import RLSD, LatentFeatures, Measurement
from rlsd_lightning.operators import inpainting
from rlsd_lightning.priors import LatentPrior

FORMS = {
    "N = 1": {"num_particles": 1},
    "N = 4": {"num_particles": 4},
    "N = 4, chunks of 1": {"num_particles": 4, "particle_chunk": 1},
    "N = 4, chunks of 1, decoder recomputed": {"num_particles": 4, "particle_chunk": 1, "decoder_checkpointing": True},
}


class RandomStableDiffusion(LatentPrior):
    """Stable Diffusion 1.5 with random weights and a random text."""

    def __init__(self, image_size: int, decoder_checkpointing: bool) -> None:
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        # the class's defaults are Stable Diffusion 1's, but for the width of the text
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        super().__init__(
            vae,
            (alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()),
            latent_channels=4,
            image_size=image_size,
            conditions={"text": torch.randn(1, 77, 768)},
            guidance_scale=1.0,
            prediction_type="epsilon",
            timestep_offset=1,
            decoder_checkpointing=decoder_checkpointing,
        )
        self.denoiser = unet
        self.freeze()

    def evaluate(self, z_t: torch.Tensor, t: int, text: torch.Tensor) -> torch.Tensor:
        return self.denoiser(z_t, t, text).sample


def measure(form: str, image_size: int) -> dict[str, float]:
    """Peak memory above the weights in GiB, and seconds of one step."""
    settings = dict(FORMS[form])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prior = RandomStableDiffusion(image_size, settings.pop("decoder_checkpointing", False)).to(device)
    physics = inpainting(prior.image_shape, mask="half").to(device)
    y = torch.zeros(1, *prior.image_shape, device=device)
    module = RLSD(prior, Measurement("m", y, physics), LatentFeatures(), num_steps=10, **settings).to(device)
    before = _in_use(device)
    start = time.perf_counter()
    module.training_step((0, module.timesteps[0]), 0).backward()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return {"peak_gib": (_peak(device) - before) / 2**30, "weights_gib": before / 2**30, "seconds": seconds}


def _in_use(device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measures every form in a process of its own and prints the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--image-size", type=int, default=512)
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    options.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.form:
        print(json.dumps(measure(args.form, args.image_size)))
        return
    results = {}
    print(f"| one step at {args.image_size}x{args.image_size} | peak above weights, GiB | seconds |\n|---|---|---|")
    for form in FORMS:
        command = [sys.executable, __file__, "--form", form, "--image-size", str(args.image_size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[form] = json.loads(done.stdout.splitlines()[-1])
        print(f"| {form} | {results[form]['peak_gib']:.2f} | {results[form]['seconds']:.1f} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
