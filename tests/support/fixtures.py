"""Fixtures: tiny random pipelines of every family and a tiny random ViT, in the on-disk formats of the real ones."""

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMPipeline,
    SanaPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DModel,
)
from torchvision.models import AlexNet_Weights, alexnet
from transformers import CLIPTextModel, CLIPTextModelWithProjection, ViTConfig, ViTModel

from examples.face_prior.diffusion import Diffusion, noise_schedule, save_pipeline
from rlsd_lightning.features import Features, LatentFeatures, PixelFeatures, ViTFeatures, load_lpips
from rlsd_lightning.functional import noise as functional_noise
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators import inpainting
from rlsd_lightning.priors import StableDiffusionPrior
from support.command import small_run
from support.networks import (
    IMAGE_SIZE,
    calibrated,
    tiny_dc_vae,
    tiny_gemma,
    tiny_sana_transformer,
    tiny_t5,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_unet,
    tiny_vae,
    tiny_vq_vae,
    tiny_words,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A GPU's gradients are rounded in another way in every run."""
    if torch.cuda.is_available():
        skip = pytest.mark.skip(reason="two runs on a GPU end with the same figures, not with the same bits")
        for item in items:
            if item.get_closest_marker("same_bits"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny_prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder: images 32x32, latents 4x8x8."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("prior")
    tokenizer = tiny_tokenizer()
    module = Diffusion(len(tokenizer), tokenizer.eos_token_id, latent_size=8, channels=(16, 16))
    save_pipeline(folder, tiny_vae(), module, tokenizer)
    return calibrated(folder)


@pytest.fixture(scope="session")
def tiny_xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionXLPipeline folder: images 32x32, latents 4x8x8."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("xl"), tiny_tokenizer()
    unet = tiny_unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(CLIPTextModel, tokenizer),
        text_encoder_2=tiny_text_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=noise_schedule(),
        add_watermarker=False,
    ).save_pretrained(folder)
    return calibrated(folder)


@pytest.fixture(scope="session")
def tiny_lcm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LatentConsistencyModelPipeline folder: images 32x32, latents 4x8x8."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("lcm"), tiny_tokenizer()
    LatentConsistencyModelPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(CLIPTextModel, tokenizer),
        tokenizer=tokenizer,
        unet=tiny_unet(time_cond_proj_dim=32),
        scheduler=LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return calibrated(folder)


@pytest.fixture(scope="session")
def tiny_sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusion3Pipeline folder without its T5: images 32x32, latents 4x8x8."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("sd3"), tiny_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
    ).eval()
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=tiny_text_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=tiny_text_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return calibrated(folder)


@pytest.fixture(scope="session")
def tiny_ldm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LDMPipeline folder: images 32x32, latents 4x8x8."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ldm")
    unet = UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    LDMPipeline(tiny_vq_vae().eval(), unet.eval(), noise_schedule()).save_pretrained(folder)
    return calibrated(folder)


@pytest.fixture(scope="session")
def tiny_flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FluxPipeline folder with an embedded guidance scale: images 32x32, latents 4x8x8."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("flux"), tiny_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_image_seq_len=4),
        vae=tiny_vae(scaling_factor=0.6, shift_factor=0.06),
        text_encoder=tiny_text_encoder(CLIPTextModel, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=tiny_t5(),
        tokenizer_2=tiny_words(512),
        transformer=transformer,
    ).save_pretrained(folder)
    return calibrated(folder)


@pytest.fixture(scope="session")
def tiny_sana_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SanaPipeline folder: images 32x32, latents 4x8x8."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sana")
    SanaPipeline(
        tokenizer=tiny_words(10**9),
        text_encoder=tiny_gemma(),
        vae=tiny_dc_vae().eval(),
        transformer=tiny_sana_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)
    return calibrated(folder)


@pytest.fixture(scope="session")
def tiny_pixel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline folder: images 32x32."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pixel")
    unet = UNet2DModel(
        sample_size=IMAGE_SIZE,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    DDPMPipeline(unet.eval(), DDPMScheduler()).save_pretrained(folder)
    return calibrated(folder)


@pytest.fixture(scope="session")
def tiny_folders(
    tiny_prior_folder: Path,
    tiny_xl_folder: Path,
    tiny_lcm_folder: Path,
    tiny_sd3_folder: Path,
    tiny_ldm_folder: Path,
    tiny_flux_folder: Path,
    tiny_sana_folder: Path,
    tiny_pixel_folder: Path,
) -> dict[str, Path]:
    """The folder of each option of the group prior."""
    return {
        "faces": tiny_prior_folder,
        "photos": tiny_prior_folder,
        "sd15": tiny_prior_folder,
        "sd21-base": tiny_prior_folder,
        "sdxl": tiny_xl_folder,
        "lcm": tiny_lcm_folder,
        "sd3": tiny_sd3_folder,
        "ldm": tiny_ldm_folder,
        "flux": tiny_flux_folder,
        "sana": tiny_sana_folder,
        "pixel": tiny_pixel_folder,
    }


@pytest.fixture(scope="session")
def tiny_features_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViTModel folder for images of 32x32."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("features")
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_alexnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of torch's with random weights where torchvision looks for AlexNet's; 230 MB."""
    home = tmp_path_factory.mktemp("torch_home")
    file = home / "hub" / "checkpoints" / Path(AlexNet_Weights.DEFAULT.url).name
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), file)
    yield home
    file.unlink()


@pytest.fixture
def with_alexnet(random_alexnet: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process and those it starts find AlexNet's weights, which are random ones."""
    monkeypatch.setenv("TORCH_HOME", str(random_alexnet))
    load_lpips.cache_clear()
    yield
    load_lpips.cache_clear()


@pytest.fixture
def noise_in_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement's particles get their noise from one generator: a hundred times as fast for a thousand of them."""

    def draw(
        shape: tuple[int, ...], particles: Iterable[int], *, seed: int, measurement: int, stream: str, step: int = 0
    ):
        rows, key = list(particles), [seed, measurement]
        counter = np.array([0, functional_noise.STREAMS[stream], step, 0], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter))
        return torch.from_numpy(generator.standard_normal((max(rows) + 1, *shape), dtype=np.float32)[rows])

    monkeypatch.setattr(functional_noise, "keyed_normal", draw)


@pytest.fixture(scope="session")
def loaded_prior(tiny_prior_folder: Path) -> StableDiffusionPrior:
    """The tiny pipeline as a prior, loaded once; tests take copies."""
    return StableDiffusionPrior(str(tiny_prior_folder), local_files_only=True)


@pytest.fixture(scope="session")
def loaded_features(tiny_features_folder: Path) -> ViTFeatures:
    """The tiny ViT as features, loaded once; tests take copies."""
    return ViTFeatures(str(tiny_features_folder), local_files_only=True)


@pytest.fixture
def tiny_prior(loaded_prior: StableDiffusionPrior) -> StableDiffusionPrior:
    """The tiny pipeline as a prior."""
    return copy.deepcopy(loaded_prior)


@pytest.fixture
def prior(tiny_prior: StableDiffusionPrior) -> StableDiffusionPrior:
    """The tiny pipeline in float64."""
    return tiny_prior.double()


@pytest.fixture
def tiny_features(loaded_features: ViTFeatures) -> ViTFeatures:
    """The tiny ViT as features."""
    return copy.deepcopy(loaded_features)


@pytest.fixture
def features_of(tiny_features: ViTFeatures) -> Callable[[str], Features]:
    """Features by name, in float64."""
    return {"latents": LatentFeatures(), "pixels": PixelFeatures(), "vit": tiny_features.double()}.__getitem__


@pytest.fixture
def measurement(tiny_prior: StableDiffusionPrior) -> Measurement:
    """Half of a random image."""
    physics = inpainting(tiny_prior.image_shape, "half")
    truth = torch.rand(1, *tiny_prior.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Measurement("noise", physics.A(truth), physics, truth)


@pytest.fixture
def small(tiny_prior_folder: Path, tiny_features_folder: Path) -> list[str]:
    """Overrides of train.py for small runs with frequent checkpoints."""
    return small_run(tiny_prior_folder, tiny_features_folder)
