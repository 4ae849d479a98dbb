"""Distills the embedded denoiser into a consistency model: ``python -m examples.face_prior.consistency``, after the denoiser.

The result is a LoRA of the UNet in diffusers' format, as LCM-LoRA is: added to ``data/priors/faces`` it makes clean latents of
noisy ones in one call.
"""

import copy
from pathlib import Path

import lightning as L
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch.callbacks import EMAWeightAveraging
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor
from torch.utils.data import DataLoader

from examples.face_prior.diffusion import CaptionedLatents, cached_latents
from examples.face_prior.faces import Faces
from examples.face_prior.training import cosine_adamw, fit, parser

__all__ = ["Consistency", "save_lora"]

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")
HUBER = 0.03
"""Distance of latents, per value, below which the loss is quadratic."""


class Consistency(L.LightningModule):
    r"""Latent consistency distillation without guidance.

    The student :math:`f` takes a noisy latent to the clean one at the end of the teacher's trajectory. The loss is the
    pseudo-Huber distance of :math:`f(z_t, t)` and :math:`\mathrm{sg}[f(\hat z_s, s)]`, where one DDIM step of the teacher leads from
    :math:`z_t` to :math:`\hat z_s`, :math:`s = t - k`; for :math:`s \le 0` it is the distance from the clean latent.

    Args:
        pipeline: The teacher.
        rank: Rank of the student's LoRA.
        skip: Length :math:`k` of the teacher's step, in timesteps.
        lr: Highest step size.
        max_steps: Length of the cosine schedule.

    References:
        | Latent Consistency Models (Luo et al., 2023)
        | https://arxiv.org/abs/2310.04378
        | LCM-LoRA: A Universal Stable-Diffusion Acceleration Module (Luo et al., 2023)
        | https://arxiv.org/abs/2311.05556
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        rank: int = 32,
        skip: int = 40,
        lr: float = 1e-3,
        max_steps: int = 3000,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="pipeline")
        # a plain dict keeps the frozen networks out of checkpoints and of the average of weights
        self._frozen = {"teacher": copy.deepcopy(pipeline.unet).eval(), "text": pipeline.text_encoder.eval()}
        for network in self._frozen.values():
            network.requires_grad_(False)
        self.unet = pipeline.unet.requires_grad_(False)
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=[*LAYERS, *CONVOLUTIONS]))
        self.register_buffer("alphas_cumprod", pipeline.scheduler.alphas_cumprod, persistent=False)

    def on_fit_start(self) -> None:
        for network in self._frozen.values():
            network.to(self.device)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise levels of timesteps, each with shape (n, 1, 1, 1)."""
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def clean(self, unet: UNet2DConditionModel, noisy: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents and noise."""
        alpha, sigma = self.levels(t)
        noise = unet(noisy, t, text).sample
        return (noisy - sigma * noise) / alpha, noise

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        latents, tokens = batch
        text = self._frozen["text"](tokens).last_hidden_state
        t = torch.randint(1, len(self.alphas_cumprod), (len(latents),), device=self.device)
        alpha, sigma = self.levels(t)
        noisy = alpha * latents + sigma * torch.randn_like(latents)
        with torch.no_grad():
            target = self.target(noisy, latents, t, text)
        distance = (self.clean(self.unet, noisy, t, text)[0] - target).square().mean(dim=(1, 2, 3))
        loss = ((distance + HUBER**2).sqrt() - HUBER).mean()
        self.log_dict({"loss": loss, "distance": distance.detach().sqrt().mean()}, prog_bar=True)
        return loss

    def target(self, noisy: Tensor, latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The student's own clean latents one step of the teacher further, or the true ones at the end."""
        s = (t - self.hparams.skip).clamp_min(0)
        clean, noise = self.clean(self._frozen["teacher"], noisy, t, text)
        alpha, sigma = self.levels(s)
        student = self.clean(self.unet, alpha * clean + sigma * noise, s, text)[0]
        return torch.where((s > 0).view(-1, 1, 1, 1), student, latents)

    def configure_optimizers(self) -> dict:
        return cosine_adamw(self, self.hparams.lr, self.hparams.max_steps)


def save_lora(folder: Path, unet: UNet2DConditionModel) -> None:
    """Writes the LoRA in half precision, as ``StableDiffusionPipeline.load_lora_weights`` reads it."""
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet.half()))


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], steps=3000, batch_size=32, out="data/priors/faces_lcm")
    options.add_argument("--teacher", type=Path, default=Path("data/priors/faces"), help="pipeline folder")
    options.add_argument("--rank", type=int, default=32, help="rank of the LoRA")
    options.add_argument("--skip", type=int, default=40, help="length of the teacher's step, in timesteps")
    options.add_argument("--lr", type=float, default=1e-3, help="highest step size")
    options.add_argument("--ema-decay", type=float, default=0.99, help="of the average of weights")
    args = options.parse_args(arguments)
    L.seed_everything(args.seed)
    pipeline = StableDiffusionPipeline.from_pretrained(args.teacher, torch_dtype=torch.float32)
    faces = Faces(args.faces)
    work = args.work / "consistency"
    work.mkdir(parents=True, exist_ok=True)
    latents = cached_latents(work, pipeline.vae.eval(), faces)
    data = CaptionedLatents(latents, faces.captions, pipeline.tokenizer, empty_share=0.5)
    loader = DataLoader(data, args.batch_size, shuffle=True, collate_fn=data.collate, drop_last=True)
    module = Consistency(pipeline, args.rank, args.skip, args.lr, args.steps)
    fit(module, loader, work, args.steps, callbacks=(EMAWeightAveraging(decay=args.ema_decay),))
    save_lora(args.out, module.cpu().unet)
    print(f"LoRA saved in {args.out}")


if __name__ == "__main__":
    main()
