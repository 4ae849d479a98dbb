"""A run that was stopped anywhere goes on to the bits of one that never was."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from support.command import SLOW, small_run, start_train, train, wait_for
from support.trainers import assert_same_bits
from support.warm import TESTS
from torch import Tensor

from rlsd_lightning.engine.locking import only_run_in
from rlsd_lightning.priors import StableDiffusionPrior


@pytest.fixture(scope="module")
def whole(tiny_prior_folder: Path, tiny_features_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two measurements that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    command = small_run(tiny_prior_folder, tiny_features_folder)
    code, printed = train(*command, "num_steps=20", "data.limit=2", f"output_dir={folder}")
    assert code == 0, printed
    return folder


@pytest.mark.same_bits
def test_a_killed_run_goes_on_to_the_same_bits(small: list[str], whole: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    command = [*small, "num_steps=20", "data.limit=2", SLOW]
    process = start_train(*command, f"output_dir={killed}", PYTHONPATH=TESTS)
    try:
        wait_for((killed / "001" / "checkpoints" / "last.ckpt").is_file, process)
    finally:
        process.kill()  # SIGKILL: nothing of the program's own runs any more
        process.communicate()
    assert not (killed / "001" / "metrics.json").exists()
    finished = {file: file.stat().st_mtime_ns for file in (killed / "000").rglob("*") if file.is_file()}
    assert killed / "000" / "metrics.json" in finished

    code, printed = train(f"resume={killed}")
    assert code == 0, printed
    assert "000: finished before, left as it is" in printed
    assert "001: going on from" in printed
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    for name in ("000", "001"):
        assert_same_bits(killed / name, whole / name)
    rows = (killed / "summary.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["name", "000", "001", "mean"]


def interrupted(small: list[str], run: Path, *settings: str, times: int = 1) -> tuple[int, str]:
    """Runs the command as a process of its own, which gets Ctrl-C at a moment that nothing of it chose."""
    process = start_train(*small, "num_steps=20", SLOW, *settings, f"output_dir={run}", PYTHONPATH=TESTS)
    try:
        wait_for((run / "000" / "checkpoints" / "last.ckpt").is_file, process)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)  # two at once are one
        printed, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, printed


@pytest.mark.same_bits
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_between_steps_and_asks_to_be_started_again(
    number: signal.Signals, small: list[str], whole: Path, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    if number == signal.SIGINT:
        code, printed = interrupted(small, stopped)
    else:
        raised = ["+callbacks.signal._target_=support.faults.Signal", f"+callbacks.signal.number={int(number)}"]
        code, printed = train(*small, "num_steps=20", *raised, "+callbacks.signal.step=7", f"output_dir={stopped}")
    assert code == 75, printed
    said = re.search(
        rf"^stopped by {number.name} after step (\d+) of '000'; resume with: .* resume=", printed, re.MULTILINE
    )
    done = int(said[1])
    saved = torch.load(stopped / "000" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == done  # not a step is lost
    assert "Traceback" not in printed
    assert train(f"resume={stopped}")[0] == 0  # from the step after the signal, which does not come again
    assert_same_bits(stopped / "000", whole / "000")


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="where tests run in the background Ctrl-C is ignored"
)
@pytest.mark.parametrize(
    ("settings", "times"),
    [(["+callbacks.slow.seconds=5"], 2), (["callbacks.stop=null"], 1)],
    ids=["twice", "without_stop"],
)
def test_ctrl_c_that_ends_a_step_asks_to_be_started_again_too(
    settings: list[str], times: int, small: list[str], tmp_path: Path
) -> None:
    code, printed = interrupted(small, tmp_path / "run", *settings, times=times)
    assert code == 75, printed
    assert re.search(r"^stopped; resume with: .* resume=", printed, re.MULTILINE), printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("again", ["same command", "resume"])
def test_inputs_that_changed_after_a_result_are_named(again: str, small: list[str], tmp_path: Path) -> None:
    picture, mask, run = tmp_path / "photo.png", tmp_path / "mask.png", tmp_path / "run"
    Image.new("RGB", (32, 32), "red").save(picture)
    Image.new("L", (32, 32), 255).save(mask)
    command = [*small, "num_steps=3", f"data.images={picture}", f"physics.mask={mask}", f"output_dir={run}"]
    assert train(*command)[0] == 0
    for changed in ([], [mask], [mask, picture]):
        for file in changed:
            os.utime(file, (time.time() + 60,) * 2)
        code, printed = train(*(command if again == "same command" else [f"resume={run}"]))
        assert code == 0 and "finished before" in printed
        assert printed.count("is newer than this run, whose finished results stay") == len(changed)
        assert all(f"'{file}' is newer" in printed for file in changed)


def test_a_refused_run_leaves_its_folder_to_the_next(small: list[str], tmp_path: Path) -> None:
    run, folder = [*small, "num_steps=5"], f"output_dir={tmp_path / 'run'}"
    for mistake in (["data.images=nowhere"], ["physics.mask=nowhere.png"]):
        code, printed = train(*run, *mistake, folder)
        assert code == 1 and "nowhere" in printed and "holds a run" not in printed
    assert train(*run, folder)[0] == 0
    assert "holds a run with other settings" in train(*run, "num_steps=6", folder)[1]


def test_a_second_run_in_the_same_folder_is_refused(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with only_run_in(run):
        code, printed = train(*small, "num_steps=2", f"output_dir={run}")
        assert code == 1
        assert f"another run is working in '{run}'" in printed
        assert not (run / "000").exists()
    code, printed = train(*small, "num_steps=2", f"output_dir={run}")
    assert code == 0, printed


@pytest.mark.same_bits
@pytest.mark.parametrize("method", ["rlsd", "rlsd_paper"])
def test_results_that_went_missing_after_the_last_step_come_back(method: str, small: list[str], tmp_path: Path) -> None:
    # as if the kill had come between the last checkpoint and the results
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = [*small, f"method={method}", "num_steps=10"]
    assert train(*command, f"output_dir={run}")[0] == 0
    shutil.copytree(run, whole)
    for file in ("metrics.json", "particles.safetensors", "grid.png"):
        (run / "000" / file).unlink()
    code, printed = train(f"resume={run}")
    assert code == 0, printed
    assert_same_bits(run / "000", whole / "000")
    again, first = (json.loads((folder / "000" / "metrics.json").read_text()) for folder in (run, whole))
    again.pop("seconds"), first.pop("seconds")
    assert again == first


def with_tiny_decoder(prior: Path, folder: Path) -> Path:
    """A copy of a prior whose own autoencoder is a tiny one; the tiny decoder in its folder makes the same images."""
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    vae = AutoencoderTiny(latent_channels=4, num_encoder_blocks=(0,) * 3, num_decoder_blocks=(1,) * 3, **widths)
    pipeline = StableDiffusionPipeline.from_pretrained(prior, low_cpu_mem_usage=False)
    pipeline.vae = vae
    pipeline.register_to_config(vae=("diffusers", "AutoencoderTiny"))
    pipeline.save_pretrained(folder)
    vae.save_pretrained(folder / "tiny_decoder")
    shutil.copy(prior / "calibration.json", folder)
    return folder


@pytest.mark.same_bits
@pytest.mark.parametrize("place", ["folder", "hub", "none"])
def test_a_resumed_run_has_the_kind_of_decoder_it_began_with(
    place: str, small: list[str], tiny_prior_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, run, whole = with_tiny_decoder(tiny_prior_folder, tmp_path / "prior"), tmp_path / "run", tmp_path / "whole"
    tiny, hub = prior / "tiny_decoder", tmp_path / "hub"
    if place != "folder":
        tiny.rename(hub)
    if place == "hub":
        monkeypatch.setattr(StableDiffusionPrior, "usual_tiny_decoder", str(hub))
    command = [*small, f"prior.pretrained={prior}", "num_steps=4", "data.limit=2"]
    code, printed = train(*command, f"output_dir={run}")
    assert code == 0, printed
    shutil.copytree(run, whole)
    shutil.rmtree(run / "001")  # as if it had been stopped before

    if place == "none":  # the decoder can be fetched only now
        hub.rename(tiny)
        code, printed = train(f"resume={run}")
    else:
        (tiny if place == "folder" else hub).rename(tmp_path / "gone")
        code, printed = train(f"resume={run}")
        assert code == 1
        assert "Traceback" not in printed
        (said,) = (line for line in printed.splitlines() if "was started with the tiny decoder" in line)
        assert (
            f"put it back into '{prior}'" in said if place == "folder" else f"fetch it with `hf download {hub}`" in said
        )
        assert not (run / "001").exists()
        (tmp_path / "gone").rename(tiny if place == "folder" else hub)
        code, printed = train(f"resume={run}")
    assert code == 0, printed
    assert_same_bits(run / "001", whole / "001")


@pytest.mark.same_bits
@pytest.mark.parametrize("is_measured", [True, False])
def test_a_resumed_run_has_the_scales_it_began_with(
    is_measured: bool, small: list[str], tiny_prior_folder: Path, tmp_path: Path
) -> None:
    prior, run, whole = tmp_path / "prior", tmp_path / "run", tmp_path / "whole"
    shutil.copytree(tiny_prior_folder, prior)
    file = prior / "calibration.json"
    entries = json.loads(file.read_text())
    if not is_measured:
        file.unlink()
    code, printed = train(*small, f"prior.pretrained={prior}", "num_steps=4", "data.limit=2", f"output_dir={run}")
    assert code == 0, printed
    shutil.copytree(run, whole)
    shutil.rmtree(run / "001")  # as if it had been stopped before

    other = {size: entry | {"decoder_std": 2 * entry["decoder_std"]} for size, entry in entries.items()}
    file.write_text(json.dumps(other))
    code, printed = train(f"resume={run}")
    assert code == 0, printed
    assert_same_bits(run / "001", whole / "001")


def test_a_finished_run_is_left_as_it_is(small: list[str], tmp_path: Path) -> None:
    assert train(*small, "num_steps=5", f"output_dir={tmp_path / 'run'}")[0] == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "000").rglob("*") if file.is_file()}
    code, printed = train(f"resume={tmp_path / 'run'}")
    assert code == 0, printed
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "000").rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.same_bits
def test_a_resumed_run_keeps_the_settings_it_was_started_with(small: list[str], tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = ["task=inpaint_box", *small, "num_steps=5", "seed=3", "method.gamma=0.7", "data.limit=2"]
    assert train(*command, f"output_dir={run}")[0] == 0
    shutil.copytree(run, whole)
    settings, started_by = (run / ".hydra" / "config.yaml").read_text(), (run / ".hydra" / "command.txt").read_text()
    # a measurement that was never begun, and nothing of it on disk
    for file in sorted((run / "001").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    code, printed = train(f"resume={run}")
    assert code == 0, printed
    assert_same_bits(run / "001", whole / "001")
    assert (run / ".hydra" / "config.yaml").read_text() == settings
    assert (run / ".hydra" / "command.txt").read_text() == started_by


@pytest.mark.same_bits
def test_ckpt_path_goes_on_with_that_measurement_only(small: list[str], tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = [*small, "num_steps=5", "data.limit=2"]
    assert train(*command, f"output_dir={run}")[0] == 0
    shutil.copytree(run, whole)
    for name in ("000", "001"):
        (run / name / "metrics.json").unlink()
        (run / name / "particles.safetensors").unlink()
    code, printed = train(f"ckpt_path={run / '001' / 'checkpoints' / 'last.ckpt'}")
    assert code == 0, printed
    assert_same_bits(run / "001", whole / "001")
    assert (run / "001" / "metrics.json").is_file()
    assert not (run / "000" / "metrics.json").exists()


def test_a_resume_with_other_settings_of_the_results_is_refused(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*small, "num_steps=5", f"output_dir={run}")[0] == 0
    (run / "000" / "metrics.json").unlink()
    checkpoint = (run / "000" / "checkpoints" / "last.ckpt").read_bytes()
    for other in (
        "num_particles=3",
        "num_steps=7",
        "method.gamma=0.9",
        "seed=1",
        "physics.sigma=0.2",
        "prior.prompt=a beard",
        "prior.guidance_scale=2",
        "physics.mask=box",
        "data.mask=box",
        "measurements_per_batch=2",
        "data.seed=1",
        "data.sequence=True",
        "data.tile=16",
        "data.fit=crop",
        "data.range=0,255",
        "data.axes=HWC",
        "+data.name=other",
        "+physics.angles=60",
        "prior.tile=64",
        "trainer.precision=bf16-mixed",
        "method=rlsd_paper",
        "task=hdr",
    ):
        code, printed = train(f"resume={run}", other)
        assert code == 1, other
        (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
        name, value = other.lstrip("+").replace("data.mask", "physics.mask").split("=")
        assert re.search(rf"error: {name} was .* when the run was started and can't change to '?{value}", line)
        assert "Traceback" not in printed
    assert (run / "000" / "checkpoints" / "last.ckpt").read_bytes() == checkpoint


def test_a_checkpoint_of_another_y_is_refused(small: list[str], tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    run = tmp_path / "run"
    assert train(*small, "num_steps=5", f"data.images={tmp_path / 'a.png'}", f"output_dir={run}")[0] == 0
    (run / "a" / "metrics.json").unlink()
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "a.png")
    code, printed = train(f"resume={run}")
    assert code == 1
    assert "error: the checkpoint belongs to measurement 'a' of a run with another measurement" in printed
    assert "Traceback" not in printed


def test_a_folder_that_holds_another_run_is_left_alone(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*small, "num_steps=5", f"output_dir={run}")[0] == 0
    before = (run / ".hydra" / "config.yaml").read_text()
    code, printed = train(*small, "num_steps=6", f"output_dir={run}")
    assert code == 1
    assert f"'{run}' holds a run with other settings" in printed
    assert (run / ".hydra" / "config.yaml").read_text() == before
    code, printed = train(*small, "num_steps=5", f"output_dir={run}")  # the same settings go on
    assert code == 0
    assert "finished before" in printed


def test_a_run_that_the_trainer_stops_early_is_not_finished(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, printed = train(*small, "num_steps=8", "+trainer.limit_train_batches=3", f"output_dir={run}")
    assert code == 1
    assert "000: stopped after 3 of 8 steps" in printed
    assert not (run / "000" / "metrics.json").exists()


def test_a_resume_may_repeat_the_command_and_say_how_it_is_computed(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    command = ["task=inpaint_box", "method=independent", "data.mask=mask.png", *small, "num_steps=3", "seed=2"]
    command += [
        "measurements_per_batch=1",
        "~callbacks.progress",
        f"output_dir={run}",
        "features@callbacks.results.features=vit",
    ]
    assert train(*command)[0] == 0
    (run / "000" / "metrics.json").unlink()
    code, printed = train(f"resume={run}", *command, "method.particle_chunk=1", "trainer.log_every_n_steps=1")
    assert code == 0, printed
    assert (run / "000" / "metrics.json").is_file()


def test_a_resume_in_another_folder_is_refused(small: list[str], tmp_path: Path) -> None:
    assert train(*small, "num_steps=3", f"output_dir={tmp_path / 'run'}")[0] == 0
    code, printed = train(f"resume={tmp_path / 'run'}", f"output_dir={tmp_path / 'other'}")
    assert code == 1
    assert f"output_dir must be left out or '{tmp_path / 'run'}' for a resumed run" in printed


def test_a_run_with_the_older_place_of_the_mask_is_resumed(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*small, "physics.mask=box", "num_steps=3", f"output_dir={run}")[0] == 0
    settings = run / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(settings)
    assert cfg.physics.mask == "box" and "mask" not in cfg.data
    cfg.data.mask, cfg.data.kernel = cfg.physics.pop("mask"), None
    OmegaConf.save(cfg, settings)
    (run / "000" / "metrics.json").unlink()
    code, printed = train(f"resume={run}", "data.mask=box")
    assert code == 0, printed
    assert "000: going on from" in printed
    code, printed = train(f"resume={run}", "data.mask=free")
    assert code == 1
    assert "physics.mask was 'box' when the run was started and can't change to 'free'" in printed


def test_a_damaged_checkpoint_is_one_line(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*small, "num_steps=5", f"output_dir={run}")[0] == 0
    (run / "000" / "metrics.json").unlink()
    checkpoint = run / "000" / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    code, printed = train(f"resume={run}")
    assert code == 1
    assert "Traceback" not in printed
    assert str(checkpoint) in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "can't be read" in line


@pytest.fixture
def no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser that fails in the run, but not yet in its trial."""
    whole = StableDiffusionPrior.evaluate

    def evaluate(self: StableDiffusionPrior, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        output = whole(self, z_t, t, text)
        return output * torch.nan if torch.is_grad_enabled() else output

    monkeypatch.setattr(StableDiffusionPrior, "evaluate", evaluate)


def test_a_run_that_diverges_ends_with_one(no_number: None, small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, "num_steps=10", "data.limit=2", f"output_dir={tmp_path / 'run'}")
    assert code == 1
    for name in ("000", "001"):
        assert f"particles of '{name}' are no longer finite" in printed
        assert not (tmp_path / "run" / name / "metrics.json").exists()
    assert f"results of 0 of 2 measurements: {tmp_path / 'run'}\n" in printed
    assert "Traceback" not in printed


def test_a_lone_diverging_measurement_ends_with_one(no_number: None, small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, "num_steps=10", f"output_dir={tmp_path / 'run'}")
    assert code == 1
    assert "particles of '000' are no longer finite" in printed
    assert "Traceback" not in printed


def test_a_run_with_relative_files_is_resumed_from_another_folder(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (32, 32), "red").save(pictures / "one.png")
    Image.new("L", (32, 32), 255).save(pictures / "mask.png")
    Image.new("RGB", (32, 32), "blue").save(pictures / "two.png")
    monkeypatch.chdir(pictures)
    run = tmp_path / "run"
    files = ["data.images=*o*.png", "data.mask=mask.png", "data.limit=1"]
    assert train(*small, *files, "num_steps=5", f"output_dir={run}")[0] == 0
    monkeypatch.chdir(tmp_path)
    code, printed = train(f"resume={run}", "data.limit=2")
    assert code == 0, printed
    assert (run / "one" / "metrics.json").is_file() and (run / "two" / "metrics.json").is_file()


def test_a_run_that_ended_before_its_results_were_written_writes_them(small: list[str], tmp_path: Path) -> None:
    # too short for a checkpoint on the way: there is only that of the end
    command = [*small, "num_steps=3", f"output_dir={tmp_path}"]
    assert train(*command)[0] == 0
    folder = tmp_path / "000"
    before = load_file(folder / "particles.safetensors")
    (folder / "metrics.json").unlink()
    code, printed = train(*command)
    assert code == 0, printed
    assert f"000: going on from {folder / 'checkpoints' / 'last.ckpt'}" in printed
    after = load_file(folder / "particles.safetensors")
    assert all(after[name].equal(before[name]) for name in before)
