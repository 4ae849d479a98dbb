"""The page's runs are those of the command line: the same bits, the same lines for bad input."""

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.app import choice_of, picture_file
from support.command import train

from rlsd_lightning.app.choices import TASKS, Choice
from rlsd_lightning.app.pictures import write_mask
from rlsd_lightning.app.view import FIGURES
from rlsd_lightning.app.watch import Watch
from rlsd_lightning.cli.settings import read_settings
from rlsd_lightning.cli.subcommands.app import Solver
from rlsd_lightning.engine.callbacks import EndEarly
from rlsd_lightning.errors import InputError, StoppedError
from rlsd_lightning.results.store import read_metrics


@pytest.fixture(scope="module")
def prior(tiny_prior_folder: Path) -> tuple[str, ...]:
    return "prior=photos", f"prior.pretrained={tiny_prior_folder}"


@pytest.fixture(scope="module")
def solver() -> Solver:
    return Solver()


def solve(solver: Solver, choice: Choice, folder: Path, callbacks: Sequence = ()) -> list[str]:
    warnings: list[str] = []
    solver(choice.settings(), folder, choice.command(folder), callbacks, warnings.append)
    return warnings


def made_in(folder: Path, prior: tuple[str, ...], **other: object) -> Choice:
    return choice_of(picture_file(folder / "inputs"), prior=prior, **other)


@pytest.mark.same_bits
@pytest.mark.parametrize("task", ["inpaint", "denoise"])
def test_the_command_that_is_shown_makes_the_same_bits(
    solver: Solver, prior: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
):
    folder, mask = tmp_path / "run", None
    choice = made_in(folder, prior, task=task, seed=3, gamma=0.4)
    if task == "inpaint":
        mask, layer = folder / "inputs" / "mask.png", Image.new("RGBA", (64, 64))
        layer.paste("red", (0, 32, 40, 64))
        write_mask(mask, [layer], (32, 32))
        choice = made_in(folder, prior, task=task, seed=3, gamma=0.4, mask=mask, strength=None)
    solve(solver, choice, folder)
    assert (folder / ".hydra" / "command.txt").read_text() == choice.command(folder) + "\n"
    shutil.copytree(folder / "inputs", tmp_path / "elsewhere" / "inputs")
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, printed = train(*shlex.split(choice.command(folder))[1:], "output_dir=again")
    assert code == 0, printed
    here, there = (load_file(each / "picture" / "particles.safetensors") for each in (folder, Path("again")))
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    figures, others = (read_metrics(each / "picture") for each in (folder, Path("again")))
    assert figures | {"seconds": 0} == others | {"seconds": 0}


def test_networks_stay_loaded(solver: Solver, prior: tuple[str, ...], tmp_path: Path):
    used = []

    class Keep(Watch):
        def on_train_batch_end(self, trainer, pl_module, *others):
            used.append(pl_module.prior)

    for number, size in enumerate((32, 32, 40)):
        folder = tmp_path / f"run{number}"
        choice = choice_of(picture_file(folder / "inputs"), prior=(*prior, f"prior.image_size={size}"), steps=1)
        solve(solver, choice, folder, [Keep(lambda *seen: None, lambda: False)])
    denoisers = [each.denoiser for each in used]
    assert denoisers[0] is denoisers[1]
    assert len(solver._networks) <= 4


@pytest.mark.parametrize("task", [name for name in TASKS if name != "inpaint"])
def test_every_task_is_solved_at_its_first_strength(solver: Solver, prior: tuple[str, ...], tmp_path: Path, task: str):
    strength = TASKS[task].strength
    choice = made_in(tmp_path, prior, task=task, steps=1, strength=None if strength is None else strength.value)
    solve(solver, choice, tmp_path)
    assert read_metrics(tmp_path / "picture")["num_particles"] == 2


def test_particles_are_shown_while_they_form(solver: Solver, prior: tuple[str, ...], tmp_path: Path):
    seen = []
    solve(solver, made_in(tmp_path, prior), tmp_path, [Watch(lambda *each: seen.append(each), lambda: False)])
    assert [(step, steps) for step, steps, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [picture.size for picture in seen[0][2]] == [(32, 32)] * 2


@pytest.mark.parametrize("after", [1, 5, 9])
def test_a_stopped_run_keeps_what_it_has(solver: Solver, prior: tuple[str, ...], tmp_path: Path, after: int):
    # of ten steps the last two refine
    done = []
    watch = Watch(lambda step, *others: done.append(step), lambda: False)
    choice = made_in(tmp_path, prior, steps=10)
    solve(solver, choice, tmp_path, [watch, EndEarly(lambda: len(done) >= after)])
    figures = read_metrics(tmp_path / "picture")
    assert {name for name, _, _ in FIGURES} - {"psnr_pseudo_inverse"} <= figures.keys()
    assert len(done) == figures["num_steps"] == min(after + 1, 10)
    saved = load_file(tmp_path / "picture" / "particles.safetensors")
    assert all(value.isfinite().all() for value in saved.values())
    assert figures["residual_sigmas"] < 3


def test_a_cancelled_run_leaves_no_result(solver: Solver, prior: tuple[str, ...], tmp_path: Path):
    with pytest.raises(StoppedError):
        solve(solver, made_in(tmp_path, prior), tmp_path, [Watch(lambda *each: None, lambda: True)])
    assert not list(tmp_path.glob("*/metrics.json"))


BAD = {
    "text.jpg": b"this is no picture",
    "cut.png": None,
    "empty.png": b"",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_the_line_of_the_command(
    solver: Solver, prior: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    folder = tmp_path / "run"
    (folder / "inputs").mkdir(parents=True)
    whole = picture_file(tmp_path, size=(200, 200)).read_bytes()
    (folder / "inputs" / name).write_bytes(whole[: len(whole) // 2] if BAD[name] is None else BAD[name])
    choice = choice_of(folder / "inputs" / name, prior=prior)
    with pytest.raises(InputError) as caught:
        solve(solver, choice, folder)
    monkeypatch.chdir(folder)
    code, printed = train(*shlex.split(choice.command(folder))[1:], "output_dir=again")
    assert code == 1
    assert f"error: {caught.value}\n" in printed
    assert name in str(caught.value)


def test_what_a_run_warns_of_is_passed_on_and_logged(solver: Solver, prior: tuple[str, ...], tmp_path: Path):
    mask = tmp_path / "inputs" / "mask.png"
    choice = made_in(tmp_path, prior, task="inpaint", mask=mask, strength=None, steps=1)
    Image.new("L", (32, 32), 255).save(mask)
    warnings = solve(solver, choice, tmp_path)
    assert any("hides nothing" in text for text in warnings)
    log = (tmp_path / "train.log").read_text()
    assert all(text in log for text in warnings)


@pytest.mark.parametrize(
    ("given", "said"),
    [(["method.gama=1"], "method.gamma"), (["prior=fases"], "faces"), (["num_steps=many"], "num_steps")],
)
def test_settings_of_the_page_are_checked_at_its_start(given: list[str], said: str, capsys: pytest.CaptureFixture):
    from rlsd_lightning.cli.subcommands.app import main

    code = main(given)
    printed = capsys.readouterr().err
    assert code in (1, 2) and re.fullmatch(rf"error: [^\n]*{re.escape(said)}[^\n]*\n", printed), printed


def test_a_prior_of_the_command_line_is_one_to_choose(tiny_prior_folder: Path):
    solver = Solver([f"prior.pretrained={tiny_prior_folder}", "prior=sd15", "method.gamma=0.3", "num_steps=7"])
    assert set(solver.prior) == {"prior=sd15", f"prior.pretrained={tiny_prior_folder}"}
    assert solver.gamma == 0.3


def test_the_command_that_is_shown_has_what_the_page_was_started_with(prior: tuple[str, ...], tmp_path: Path):
    solver = Solver(["method=distilled", "features=pixels", "num_steps=7", "method.gamma=0.3"])
    choice = made_in(tmp_path, prior, given=solver.given, steps=2, gamma=0.1)
    words = shlex.split(choice.command(tmp_path))
    assert {"method=distilled", "features=pixels", "num_steps=2", "method.gamma=0.1"} <= set(words)
    assert len({word.split("=")[0] for word in words}) == len(words)
    solve(solver, choice, tmp_path)
    assert (tmp_path / ".hydra" / "command.txt").read_text() == choice.command(tmp_path) + "\n"
    settings = read_settings(tmp_path)
    assert settings.method._target_.endswith(".Distilled") and settings.features._target_.endswith(".PixelFeatures")


def test_a_checkpoint_tells_its_family(tiny_folders: dict[str, Path]):
    for name, folder in tiny_folders.items():
        kind = "sd15" if name in ("faces", "photos", "sd21-base") else name
        assert Solver.family(str(folder)) == kind


@pytest.mark.parametrize("setting", ["trainer.devices=2", "trainer.num_nodes=2", "trainer.devices=-1"])
def test_an_app_of_several_devices_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match=r"trainer.devices and trainer.num_nodes must be 1 in the app"):
        Solver([setting])
