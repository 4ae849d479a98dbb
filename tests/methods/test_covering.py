"""Candidates of a covering set: where they stand in the schedule, how they are chosen, and what they bring."""

from pathlib import Path

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from support.problems import make
from support.steps import take_step

from rlsd_lightning import RLSD, LatentFeatures, solve
from rlsd_lightning.errors import InputError
from rlsd_lightning.methods.covering import cells
from rlsd_lightning.results.density import exact_posterior

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUIET = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}


def test_cells_of_groups_are_their_means_and_shares():
    places = torch.tensor([-0.5] * 6 + [0.1] * 3 + [0.8] * 1)
    images = places.view(-1, 1, 1, 1) + 0.01 * torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    means, shares = cells(images, 3)
    assert shares.tolist() == pytest.approx([0.6, 0.3, 0.1])
    expected = torch.stack([part.mean(dim=0) for part in images.split([6, 3, 1])])
    torch.testing.assert_close(means, expected)


def test_cells_of_as_many_images_are_the_images():
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    means, shares = cells(images, 4)
    assert shares.tolist() == [0.25] * 4
    assert torch.cdist(means.flatten(1), images.flatten(1)).amin(dim=1).max() < 1e-6


@pytest.mark.parametrize(("cover", "length"), [(0.0, 0), (0.1, 0), (0.5, 2), (1.0, 4)])
def test_candidates_take_their_steps_from_the_loop(prior, cover: float, length: int):
    module, usual = (make(prior, cover=value) for value in (cover, 0.0))  # 20 steps, of which 16 are the loop
    assert len(module.timesteps) == 20
    assert module.candidate_runs.length == length
    assert module.timesteps[4 * length :] == usual.timesteps[4 * length :]
    runs = [module.timesteps[start : start + length] for start in range(0, 4 * length, length or 1)]
    assert all(run == runs[0] and run == sorted(run, reverse=True) for run in runs if length)
    assert ("candidates" in dict(module.named_buffers())) is bool(length)


def test_the_noise_levels_of_a_short_run_are_those_of_usual_steps(prior):
    candidates = make(prior, cover=1.0).candidate_runs
    assert [candidates.equivalent_step(step) for step in range(4)] == [4, 9, 14, 19]
    assert [candidates.equivalent_step(step) for step in range(4, 8)] == [4, 9, 14, 19]
    assert [candidates.equivalent_step(step) for step in (16, 19)] == [16, 19]
    assert (candidates.step_scale(3), candidates.step_scale(16)) == (5, 1)


def test_a_short_run_starts_from_noise_and_the_refinement_from_the_cells(prior):
    module = make(prior, cover=1.0, gamma=0.0)
    for step in range(16):
        take_step(module, step)
        if step in (3, 7, 11):
            t = module.timesteps[0]
            z_t = module.prior.alphas[t] * module.z + module.prior.sigmas[t] * module.e
            torch.testing.assert_close(z_t.detach(), module.noise(step, "candidates"))
            torch.testing.assert_close(module.candidates[:, step // 4], module.x.data)
    means, shares = cells(module.candidates.flatten(0, 1), 3)
    torch.testing.assert_close(module.cell_shares, shares)
    torch.testing.assert_close(module.z.detach(), module.prior.encode(means))


def test_more_particles_than_the_choice_can_take_are_refused(prior):
    with pytest.raises(InputError, match="cover must be 0 for more than 64 particles, got"):
        make(prior, num_particles=65, cover=1.0)


def test_a_run_goes_on_from_a_checkpoint(tiny_prior, measurement, tmp_path: Path):
    def module() -> RLSD:
        return RLSD(tiny_prior, measurement, LatentFeatures(), num_particles=2, num_steps=20, cover=1.0)

    whole = module()
    saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    L.Trainer(max_epochs=1, callbacks=[saved], **QUIET).fit(whole)
    for stopped in (2, 7):
        (file,), resumed = tmp_path.glob(f"*step={stopped}.ckpt"), module()
        L.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(resumed, ckpt_path=file, weights_only=True)
        assert torch.equal(whole.final_images()[0], resumed.final_images()[0]), stopped


def test_a_covering_set_reaches_more_modes():
    def modes(cover: float) -> int:
        found = 0
        for seed in range(3):
            settings = [
                "method.image_std=1",
                "method.decoder_std=0.05",
                "method.refine_share=0",
                f"method.cover={cover}",
            ]
            command = ["task=toy", "method=independent", "num_particles=5", "num_steps=60", f"seed={seed}", *settings]
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                cfg = compose("train", [*command, "output_dir=unused"])
            prior = instantiate(cfg.prior)
            measurement = instantiate(cfg.data)(prior.image_shape, instantiate(cfg.physics))[0]
            module = instantiate(cfg.method)(prior, measurement, instantiate(cfg.features))
            L.Trainer(max_epochs=1, enable_checkpointing=False, enable_model_summary=False, **QUIET).fit(module)
            found += len(exact_posterior(prior, measurement).assign(module.final_images()[0]).unique())
        return found

    assert modes(1.0) >= 14 > modes(0.0)  # of 5 modes by 3 seeds; independent draws reach 3.4 of 5 in the mean


@pytest.mark.parametrize(("cover", "known"), [(0.0, False), (1.0, True)])
def test_results_say_what_share_of_the_candidates_a_particle_stands_for(tiny_prior, measurement, cover, known):
    result = solve(
        measurement.y,
        measurement.physics,
        tiny_prior,
        num_particles=2,
        num_steps=10,
        cover=cover,
        trainer=QUIET,
    )
    assert ("cell_shares" in result.metrics) is known
    if known:
        shares = result.metrics["cell_shares"]
        assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
        assert all(8 * share == pytest.approx(round(8 * share)) for share in shares)
