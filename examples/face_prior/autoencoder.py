"""Trains the embedded prior's autoencoder: ``python -m examples.face_prior.autoencoder``.

An ``AutoencoderKL`` with four latent channels that halves the resolution twice. The loss is the mean absolute error
of pixels and of their horizontal and vertical differences (which keeps the drawn lines sharp), a distance in the
layers of a feature network (which keeps what is faint but names a face, such as a moustache), and a small
Kullback-Leibler term to the unit Gaussian. The saved autoencoder's latents are white.
"""

from pathlib import Path

import lightning as L
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from examples.face_prior.classifier import load_classifier
from examples.face_prior.faces import Faces
from examples.face_prior.training import cosine_adamw, fit, parser

__all__ = ["Autoencoder", "PerceptualDistance", "whiten"]


def _difference_loss(a: Tensor, b: Tensor) -> Tensor:
    error = a - b
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


class PerceptualDistance(nn.Module):
    r"""Mean squared distance between unit-length tokens, over the layers of a feature network.

    .. math::
        d(a, b) = \operatorname{mean}_{l, p} \| \phi_{l, p}(a) - \phi_{l, p}(b) \|^2

    Args:
        folder: Folder that features.py wrote. It should not be the
            network that later measures the prior.

    References:
        | The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018)
        | https://arxiv.org/abs/1801.03924
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.vit = load_classifier(folder).vit

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens of images in [-1, 1], with shape (layers, n, positions, D)."""
        layers = self.vit(pixel_values=images, output_hidden_states=True).hidden_states
        return torch.stack([normalize(layer, dim=-1) for layer in layers])

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.tokens(target)
        return (self.tokens(images) - wanted).square().sum(-1).mean()


class Autoencoder(L.LightningModule):
    """A KL autoencoder of images in [-1, 1].

    Args:
        channels: Widths of the three resolutions.
        image_size: Height and width of an image.
        lr: Highest step size.
        max_steps: Length of the cosine schedule.
        kl_weight: Weight of the mean Kullback-Leibler divergence per latent element.
        perceptual: Folder of the feature network of the perceptual distance; none if left out.
        perceptual_weight: Weight of that distance.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (16, 32, 64),
        image_size: int = 64,
        lr: float = 1e-3,
        max_steps: int = 5000,
        kl_weight: float = 3e-4,
        perceptual: str | None = None,
        perceptual_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            mid_block_add_attention=False,
            sample_size=image_size,
        )
        # a plain dict hides a frozen network from state_dict() and parameters()
        self._frozen = {"perceptual": PerceptualDistance(perceptual)} if perceptual else {}

    def on_fit_start(self) -> None:
        for module in self._frozen.values():
            module.to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, _ = batch
        posterior = self.vae.encode(images).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = (decoded - images).abs().mean() + _difference_loss(decoded, images) + self.hparams.kl_weight * kl
        if self._frozen:
            perceptual = self._frozen["perceptual"](decoded, images)
            loss = loss + self.hparams.perceptual_weight * perceptual
            self.log("perceptual", perceptual, prog_bar=True)
        mse = torch.mean((decoded.detach() - images) ** 2)
        self.log_dict({"loss": loss, "kl": kl, "psnr": 10 * torch.log10(4 / mse)}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        return cosine_adamw(self, self.hparams.lr, self.hparams.max_steps)


@torch.no_grad()
def whiten(vae: AutoencoderKL, images: Tensor) -> None:
    r"""Gives the latents mean 0 and covariance I over channels, by changing the autoencoder's outermost convolutions.

    With the mean :math:`m` and covariance :math:`C` of the latents' channels over images and positions, the encoder's
    last convolution is followed by :math:`z' = C^{-1/2} (z - m)`, and the decoder's first is preceded by its inverse,
    so that reconstructions stay as they were. Sampling a diffusion model starts from white noise: the closer latents
    are to it, the less is left of the start. The logarithm of the posterior's variance is carried over to first order.

    Args:
        vae: Changed in place; must have ``quant_conv`` and ``post_quant_conv``.
        images: In [-1, 1], with shape :math:`(n, 3, H, W)`; some hundreds are enough.
    """
    posteriors = [vae.encode(batch).latent_dist for batch in images.split(64)]
    latents = torch.cat([posterior.mean for posterior in posteriors]).movedim(1, 0).flatten(1).double()
    log_variances = torch.cat([posterior.logvar for posterior in posteriors]).mean((0, 2, 3)).double()
    mean, covariance = latents.mean(1), torch.cov(latents)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    whitening = vectors @ torch.diag(eigenvalues.rsqrt()) @ vectors.T
    colouring = vectors @ torch.diag(eigenvalues.sqrt()) @ vectors.T

    variances = whitening**2 * log_variances.exp()
    shares = variances / variances.sum(1, keepdim=True)
    channels = len(mean)
    weight, bias = vae.quant_conv.weight.double().flatten(1), vae.quant_conv.bias.double()
    weight = torch.cat([whitening @ weight[:channels], shares @ weight[channels:]])
    bias = torch.cat(
        [
            whitening @ (bias[:channels] - mean),
            shares @ (bias[channels:] - log_variances) + variances.sum(1).log(),
        ]
    )
    vae.quant_conv.weight.copy_(weight.view_as(vae.quant_conv.weight))
    vae.quant_conv.bias.copy_(bias)

    weight = vae.post_quant_conv.weight.double().flatten(1)
    vae.post_quant_conv.bias.add_(weight @ mean)
    vae.post_quant_conv.weight.copy_((weight @ colouring).view_as(vae.post_quant_conv.weight))
    vae.register_to_config(scaling_factor=1.0)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], steps=9000, batch_size=16, out="data/priors/faces")
    options.add_argument("--perceptual", help="folder of a feature network: adds a perceptual distance to the loss")
    args = options.parse_args(arguments)
    L.seed_everything(args.seed)
    faces = Faces(args.faces)
    module = Autoencoder(image_size=faces.pixels.shape[1], max_steps=args.steps, perceptual=args.perceptual)
    fit(module, DataLoader(faces, args.batch_size, shuffle=True), args.work / "autoencoder", args.steps)
    sample = torch.stack([faces[i][0] for i in range(min(len(faces), 1024))])
    whiten(module.vae.cpu().eval(), sample)
    module.vae.save_pretrained(args.out / "vae")
    print(f"autoencoder saved in {args.out / 'vae'}")


if __name__ == "__main__":
    main()
