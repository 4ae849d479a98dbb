r"""Candidates for a set that covers: short runs of the loop, and the choice of those that go on.

A share of the steps draws :math:`4 N` candidates, N at a time, with few steps each. With the candidates' images :math:`x_c`,

.. math:: \min_{c_1, \dots, c_N} \sum_c \min_i \|x_c - x_{c_i}\|^2

chooses N representatives (k-medoids), each of which stands for the candidates that are nearest to it. A particle goes on
from the mean :math:`\bar x_i` of its cell, with fresh noise at the level where the remaining steps begin,
:math:`z_t = \alpha_t E(\bar x_i) + \sigma_t n`. All steps together call the networks as often as without candidates.

The set then is a quantizer of the posterior, not a sample of it: its best member is nearer to the truth, and the shares of the
cells, not of the particles, estimate probabilities.

References:
    | Foundations of Quantization for Probability Distributions (Graf & Luschgy, 2000)
    | https://doi.org/10.1007/BFb0103945
"""

import torch
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.schedules import ddim_timesteps
from rlsd_lightning.functional.sets.clustering import k_medoids
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["CandidateRuns", "cells"]

ROUNDS = 4
"""Candidates of each particle."""
MANY = 64
"""Most particles among whose candidates k-medoids chooses."""


class CandidateRuns:
    """Short runs of a method's loop from fresh noise, in place of its first steps.

    Args:
        particles: The method. Its buffers ``candidates``, with shape (M N, rounds, C, H, W), and ``cell_shares``, with shape
            (M N,), are set here, so that checkpoints hold them.
        cover: Share of the loop's steps that draw candidates, in [0, 1]. A start from an earlier item of a sequence has none.
        loop: The loop's steps.

    Raises:
        InputError: If the choice among the candidates of that many particles would take too long.
    """

    def __init__(self, particles: ParticleModule, cover: float, loop: int) -> None:
        self.particles = particles
        self.length = 0 if particles.first_step else int(cover * loop / ROUNDS + 1e-9)
        self.steps = ROUNDS * self.length
        if self.length and particles.num_particles > MANY:
            raise InputError(
                f"cover must be 0 for more than {MANY} particles, got {cover} for {particles.num_particles}"
            )
        if self.length:
            prior = particles.prior
            short = ddim_timesteps(
                prior.num_train_timesteps, self.length, prior.timestep_offset, particles.timestep_spacing
            )
            particles.timesteps = ROUNDS * short + particles.timesteps[self.steps :]
            images = torch.zeros(len(particles.x), ROUNDS, *particles.x.shape[1:])
            particles.register_buffer("candidates", images)
            particles.register_buffer("cell_shares", torch.ones(len(particles.x)) / particles.num_particles)

    def step_scale(self, step: int) -> float:
        """Factor of a step's size: short runs take fewer and larger steps."""
        return self.particles.num_steps / self.length if step < self.steps else 1.0

    def equivalent_step(self, step: int) -> int:
        """The step of a run without candidates that ends at the same noise level."""
        if step < self.steps:
            return (step % self.length + 1) * self.particles.num_steps // self.length - 1
        return step

    def ends_run(self, step: int) -> bool:
        """Whether a short run ends with a step."""
        return step < self.steps and (step + 1) % self.length == 0

    @torch.no_grad()
    def next_noise(self, step: int) -> Tensor:
        """Keep the candidates of a short run, and return the noise of the next one, or of the remaining steps.

        All processes call it. Before the remaining steps the latents become those of the cells' means.

        Args:
            step: The last step of the short run.
        """
        particles, rows = self.particles, self.particles.rows
        made = (step + 1) // self.length
        particles.candidates[rows, made - 1] = particles.step_images[0].to(particles.candidates)
        noise = particles.noise(step, "candidates")
        if made < ROUNDS:
            t = particles.timesteps[0]
            alpha, sigma = particles.prior.alpha(t), particles.prior.sigma(t)
            return (noise - alpha * particles.z.detach()[rows]) / sigma  # so that z_t is the noise alone
        every = particles.gather(particles.candidates[rows])
        found = [cells(each.flatten(0, 1), particles.num_particles) for _, each in particles.each(every)]
        means, shares = (torch.cat(parts) for parts in zip(*found, strict=True))
        particles.cell_shares.copy_(shares)
        encoded = particles.chunked(particles.prior.encode, means[rows]) if len(noise) else particles.z.detach()[rows]
        particles.z.data.copy_(particles.gather(encoded.to(particles.z)))
        return noise


def cells(images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Means of the cells of the representatives of some images, and the cells' shares of all images.

    Args:
        images: With shape (n, C, H, W).
        count: The number of cells, from 1 to n.

    Returns:
        With shapes (count, C, H, W) and (count,), the largest cell first.
    """
    points = images.flatten(1).cpu().double()
    _, labels = k_medoids(torch.cdist(points, points).square(), count)
    labels = labels.to(images.device)
    members = torch.nn.functional.one_hot(labels, count).T.to(images)
    shares = members.sum(dim=1) / len(images)
    means = members @ images.flatten(1) / members.sum(dim=1, keepdim=True)
    return means.unflatten(1, images.shape[1:]), shares
