"""Images in overlapping tiles: the same image where networks see no further than tiles overlap, and no visible seams."""

from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from support.families import load
from support.steps import take_step
from torch import Tensor, nn

from rlsd_lightning import RLSD, LatentFeatures, Measurement
from rlsd_lightning.images import load_image
from rlsd_lightning.operators import inpainting
from rlsd_lightning.priors import Prior, StableDiffusionPrior
from rlsd_lightning.priors.tiles import in_tiles

DATA = Path(__file__).resolve().parents[2] / "data"


def convolutions(scale: int = 1) -> nn.Module:
    """A network that sees three pixels around, in float64; a positive scale enlarges, a negative reduces."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 5, padding=2), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1)]
    if scale > 1:
        layers.append(nn.Upsample(scale_factor=scale, mode="nearest"))
    if scale < 0:
        layers.insert(0, nn.AvgPool2d(-scale))
    return nn.Sequential(*layers).double().requires_grad_(False)


@pytest.mark.parametrize("size", [(40, 40), (100, 32), (33, 71)])
@pytest.mark.parametrize("scale", [1, 4])
def test_the_image_and_its_gradient_are_those_of_one_piece(size: tuple[int, int], scale: int) -> None:
    network = convolutions(scale)
    values = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for function in (network, lambda given: in_tiles(network, given, 32, scale)):
        leaf = values.clone().requires_grad_()
        made = function(leaf)
        made.sin().sum().backward()
        results.append((made.detach(), leaf.grad))
    for whole, tiled in zip(*results, strict=True):
        torch.testing.assert_close(tiled, whole, atol=1e-12, rtol=0)


def test_images_are_encoded_in_tiles_too() -> None:
    network, images = convolutions(-4), torch.rand(1, 3, 160, 200, dtype=torch.float64)
    torch.testing.assert_close(in_tiles(network, images, 128, Fraction(1, 4)), network(images), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("length", "tile", "stride"), [(1024, 600, 8), (1280, 720, 8), (1088, 544, 32), (200, 136, 8)])
def test_encoded_tiles_lie_where_they_belong_for_every_size(length: int, tile: int, stride: int) -> None:
    places = torch.arange(length, dtype=torch.float64).expand(1, 1, 2 * stride, length)
    places = torch.nn.functional.pad(places, (0, 0, 0, length - 2 * stride))
    reduce = partial(torch.nn.functional.avg_pool2d, kernel_size=stride)
    encoded = in_tiles(reduce, places, tile, Fraction(1, stride))
    torch.testing.assert_close(encoded, reduce(places), atol=1e-9, rtol=0)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_normalisations_see_the_whole_image(layers: int) -> None:
    torch.manual_seed(0)
    kinds = [[nn.Conv2d(3, 8, 3, padding=1)] + [nn.Conv2d(8, 8, 3, padding=1) for _ in range(layers - 1)]][0]
    network = nn.Sequential(*(part for each in kinds for part in (each, nn.GroupNorm(4, 8), nn.SiLU()))).double()
    values = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    values[..., 40:] *= 0.1  # a plain sky
    with torch.no_grad():
        whole = network(values)
        errors = [torch.dist(in_tiles(network, values, 32, 1, shared), whole) for shared in (None, network)]
    assert errors[1] < errors[0] / 4
    assert not any(module._forward_hooks for module in network.modules())


class Watched(nn.Module):
    """A network that keeps the sizes of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, values: Tensor) -> Tensor:
        self.seen.append(tuple(values.shape))
        return values.square()


def test_the_network_sees_a_tile_at_a_time_and_once_more_for_the_gradient() -> None:
    network, leaf = Watched(), torch.rand(1, 1, 64, 64, requires_grad=True)
    made = in_tiles(network, leaf, 32)
    tiles = len(network.seen)
    assert set(network.seen) == {(1, 1, 32, 32)} and tiles == 9
    made.sum().backward()
    assert len(network.seen) == 2 * tiles
    torch.testing.assert_close(leaf.grad, 2 * leaf.detach())


def tiled_pair(folders: dict[str, Path], family: str) -> list[Prior]:
    """A prior of images of 96x64 in one piece and in tiles; the sizes of what its network sees are in ``seen``."""
    return [load(folders, family, image_size=(96, 64), tile=tile) for tile in (None, 64)]


@pytest.mark.parametrize("family", ["faces", "sdxl", "sd3"])
def test_every_family_is_tiled(family: str, tiny_folders: dict[str, Path]) -> None:
    whole, tiled = tiled_pair(tiny_folders, family)
    assert tiled.is_tiled and not whole.is_tiled
    z = torch.randn(2, *tiled.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for results in zip(whole.denoise(z, 500), tiled.denoise(z, 500), strict=True):
            assert torch.dist(*results) < 0.5 * results[0].norm()
        images = tiled.decode(z)
        assert images.shape == (2, *tiled.image_shape) and tiled.encode(images).shape == z.shape


@pytest.mark.parametrize("chunk", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_chunks_of_particles_take_the_same_step_in_tiles(chunk: int, tiny_folders: dict[str, Path]) -> None:
    _, prior = tiled_pair(tiny_folders, "faces")
    seen = []
    prior.denoiser.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    physics = inpainting(prior.image_shape, "half")
    measurement = Measurement("grey", physics.A(torch.zeros(1, *prior.image_shape)), physics)
    steps = []
    for particle_chunk in (None, chunk):
        seen.clear()
        module = RLSD(prior, measurement, LatentFeatures(), num_steps=4, num_particles=3, particle_chunk=particle_chunk)
        steps.append(take_step(module))
        assert {shape[2:] for shape in seen} == {(16, 16)}
        assert max(shape[0] for shape in seen) == (particle_chunk or 3)
    torch.testing.assert_close(*steps, atol=1e-4, rtol=1e-4)


def steps_along(image: Tensor) -> Tensor:
    """Mean size of the steps from each column to the next."""
    return image.diff(dim=-1).abs().mean(dim=(0, 1, 2))


@pytest.mark.parametrize("name", ["china", pytest.param("coffee", marks=pytest.mark.slow)])
def test_photographs_have_no_seams(name: str) -> None:
    size = (128, 256)
    prior = StableDiffusionPrior(str(DATA / "priors" / "photos"), image_size=size, tile=None)
    picture = load_image(DATA / "photos" / f"{name}.jpg", *size)
    noise = torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    results = []
    with torch.no_grad():
        z_t = prior.alpha(100) * prior.encode(picture) + prior.sigma(100) * noise
        for tile in (None, 128):
            prior.tile = tile
            results.append(steps_along(prior.decode(prior.denoise(z_t, 100)[0])))
    whole, tiled = results
    near = torch.zeros(size[1] - 1, dtype=torch.bool)
    for border in (64, 80, 112, 128, 144, 176, 192):  # where tiles of 128 pixels start or end, and where one takes over
        near[border - 4 : border + 4] = True
    seams, elsewhere = (tiled[part].mean() / whole[part].mean() for part in (near, ~near))
    assert seams == pytest.approx(elsewhere.item(), rel=0.05)
    assert elsewhere == pytest.approx(1, abs=0.1)
