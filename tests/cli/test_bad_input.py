"""What a user can get wrong: one line that says what was expected and what came, the right exit code, no traceback."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image
from support.command import start_train, train

from rlsd_lightning.cli.messages import explain
from rlsd_lightning.cli.subcommands import app, calibrate
from rlsd_lightning.errors import InputError
from rlsd_lightning.images import find_images

ANSI_ESCAPE = "\x1b["


@pytest.fixture
def small(tiny_prior_folder: Path, tiny_features_folder: Path, tmp_path: Path) -> list[str]:
    """Overrides for the smallest run; what a test gives after them wins."""
    return [
        f"prior.pretrained={tiny_prior_folder}",
        "num_steps=3",
        "num_particles=2",
        f"output_dir={tmp_path / 'run'}",
    ]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of good and bad files."""
    (tmp_path / "broken.png").write_text("no picture")
    for size in (32, 20):
        Image.new("L", (size, size), 255).save(tmp_path / f"mask{size}.png")
    Image.new("L", (32, 32), 0).save(tmp_path / "black.png")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "good.png")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "small.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half_a_pipeline").mkdir()
    (tmp_path / "half_a_pipeline" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return tmp_path


def error_line(printed: str) -> str:
    """The only line that reports an error."""
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert ANSI_ESCAPE not in line
    return line


BAD_VALUES = [
    # what is given, and what the line says of what was expected and what came
    (["data.images={files}/nowhere.png"], ["an image, a folder or a pattern", "{files}/nowhere.png"]),
    (["data.images={files}/*.jpg"], ["an image, a folder or a pattern", "{files}/*.jpg"]),
    (["data.images={files}/empty"], ["a folder with images", ".png", "{files}/empty"]),
    (["data.images={files}/broken.png"], ["{files}/broken.png", "can't be read as an image"]),
    (["data.images=null"], ["data.images=null and data.measurement=null", "set one of them"]),
    (["task=super_resolution", "physics.filter=lanczos"], ["bicubic, bilinear, gaussian", "lanczos"]),
    (["+trainer.strategy=ddp", "prior.pretrained=nowhere"], ["trainer.strategy can't be set", "parallel"]),
    (["+trainer.logger=false", "prior.pretrained=nowhere"], ["trainer.logger can't be set", "logger=null"]),
    (["+trainer.enable_progress_bar=false"], ["trainer.enable_progress_bar can't be set", "callbacks.progress=null"]),
    (["trainer.precision=64-true", "prior.pretrained=nowhere"], ["trainer.precision must be auto, 32-true", "64-true"]),
    (["compile=whole"], ["compile must be auto, regional, true or false", "whole"]),
    (["parallel=both"], ["parallel must be auto, measurements, particles", "both"]),
    (["measurements_per_batch=0"], ["measurements_per_batch must be at least 1", "0"]),
    (["method.distillation_weight=-1"], ["method.distillation_weight must be at least 0", "-1"]),
    (["method=rlsd_paper", "method.gamma=-1"], ["method.gamma must be at least 0", "-1"]),
    (["method=rlsd_paper", "method.lr_x=0"], ["method.lr_x must be above 0", "0"]),
    (["data.limit=0"], ["data.limit must be at least 1", "0"]),
    (["callbacks.guard.every_n_steps=0"], ["callbacks.guard can't be made", "every_n_steps must be at least 1", "0"]),
    (["callbacks.checkpoint.every_n_train_steps=-3"], ["callbacks.checkpoint can't be made", "-3. Must be >= 0"]),
    (["+callbacks.mine._target_=nowhere.Mine"], ["callbacks.mine can't be made", "No module named 'nowhere'"]),
    (["physics.mask={files}/mask20.png"], ["32x32", "20x20", "resize"]),
    (["physics.mask=halve"], ["physics.mask must be one of half, box", "halve"]),
    (["physics.mask=box", "data.mask=free"], ["data.mask", "physics.mask", "leave one of them out"]),
    (["data.measurement=null", "data.tile=5"], ["data.tile must divide", "5"]),
    (["data.mask={files}/mask20.png"], ["32x32", "20x20", "resize"]),
    (["data.mask={files}/nowhere.png"], ["half, box, free, random", "{files}/nowhere.png"]),
    (["data.mask={files}/broken.png"], ["{files}/broken.png", "can't be read as an image"]),
    (["data.mask={files}/black.png"], ["hides every pixel", "white"]),
    (["task=super_resolution", "physics.factor=16"], ["x16", "at least 64", "32x32"]),
    (["task=motion_deblur", "data.kernel={files}/nowhere.npy"], ["blur kernel", "{files}/nowhere.npy"]),
    (["task=motion_deblur", "data.kernel={files}/broken.png"], ["{files}/broken.png", "can't be read"]),
    (
        ["data.measurement={files}/nowhere.png"],
        ["data.measurement must be an image, a folder or a pattern", "{files}/nowhere.png"],
    ),
    (["data.measurement={files}/broken.png"], ["{files}/broken.png", "can't be read"]),
    (["data.fit=stretch"], ["data.fit must be one of keep, crop, pad", "stretch"]),
    (["prior.tile=62"], ["prior.tile must be auto, null or a multiple of 4 of at least 64", "62"]),
    (["prior.pretrained={files}/empty"], ["diffusers pipeline folder", "{files}/empty", "model_index.json"]),
    (["prior.pretrained={files}/good.png"], ["diffusers pipeline folder", "{files}/good.png"]),
    (
        ["prior.pretrained={files}/half_a_pipeline"],
        ["complete folder of a StableDiffusionPipeline", "{files}/half_a_pipeline", "no scheduler"],
    ),
    (["prior.pretrained={files}/nowhere", "prior.local_files_only=true"], ["prior.pretrained", "{files}/nowhere"]),
    (["prior.image_size=33"], ["multiple of 4", "33"]),
    (["features=vit", "features.pretrained={files}/empty"], ["features.pretrained", "ViTModel", "{files}/empty"]),
    (["num_particles=0"], ["num_particles must be at least 1", "0"]),
    (["num_steps=0"], ["num_steps must be from 1 to 1000", "0"]),
    (["num_steps=1001"], ["num_steps must be from 1 to 1000", "1001"]),
    (["seed=-1"], ["seed", "-1"]),
    (["physics.sigma=-1"], ["physics.sigma must be at least 0", "-1"]),
    (["method.gamma_mode=wild"], ["method.gamma_mode must be one of relative, absolute", "wild"]),
    (["method.weighting=cubic"], ["linear, sqrt, log, square, const", "cubic"]),
    (["trainer.precision=17"], ["trainer", "17"]),
    (["trainer.accelerator=abacus"], ["trainer", "abacus"]),
    (["trainer.devices=0"], ["trainer", "0"]),
    (["resume={files}/empty"], ["run's folder", "{files}/empty", "resume="]),
    (["resume={files}/nowhere"], ["run's folder", "{files}/nowhere", "resume="]),
    (["ckpt_path={files}/a/checkpoints/last.ckpt"], ["checkpoint", "{files}/a/checkpoints/last.ckpt"]),
]


@pytest.mark.parametrize(("given", "said"), BAD_VALUES, ids=[" ".join(given) for given, _ in BAD_VALUES])
def test_a_bad_value_is_one_line_and_exit_code_1(
    given: list[str], said: list[str], small: list[str], files: Path
) -> None:
    # a resumed run is told where it is by resume= or ckpt_path= alone
    own_folder = given[0].startswith(("resume", "ckpt_path"))
    code, printed = train(*(small[:-1] if own_folder else small), *(argument.format(files=files) for argument in given))
    assert code == 1, printed
    line = error_line(printed)
    for words in said:
        assert words.format(files=files) in line
    assert not list((files / "run").glob("*/metrics.json"))


@pytest.mark.parametrize(
    "name", ["data.images", "physics.mask", "prior.pretrained", "resume", "ckpt_path", "output_dir"]
)
def test_a_path_that_no_file_can_have_is_one_line(name: str, small: list[str]) -> None:
    code, printed = train(*small, f"{name}={'a' * 300}")
    assert code == 1, printed
    line = error_line(printed)
    assert "a" * 300 in line and line.endswith("' can't be used: File name too long")


def test_resuming_no_run_makes_no_folder(files: Path) -> None:
    code, _ = train(f"resume={files / 'nowhere'}")
    assert code == 1
    assert not (files / "nowhere").exists()


BAD_COMMANDS = [
    (["task=paint"], ["there is no task=paint; did you mean inpaint or inpaint_box?", "--help lists all"]),
    (["method=langevin"], ["there is no method=langevin; there are daps, distilled", "rlsd_paper"]),
    (["experiment=inpaint"], ["there is no experiment=inpaint; did you mean paper/inpaint"]),
    (["features@callbacks.results.features=pixel"], ["there is no features=pixel; did you mean pixels?"]),
    (["hydra/launcher=slurm"], ["hydra/launcher/slurm"]),
    (["task=null"], ["task can't be null", "super_resolution"]),
    (["method=null"], ["method can't be null", "rlsd_paper"]),
    (["foo=1"], ["foo"]),
    (["method.gama=1"], ["gama", "did you mean method.gamma?"]),
    (["metod.gamma=1"], ["metod", "did you mean method.gamma?"]),
    (["tsk=inpaint"], ["tsk", "did you mean task?"]),
    (["+method.gama=1"], ["gama"]),
    (["+foo=1"], ["there is no setting 'foo'; there are ", "num_steps"]),
    (["++num_step=1"], ["there is no setting 'num_step'; did you mean num_steps?"]),
    (["+foo.bar=1"], ["there is no setting 'foo'"]),
    (
        ["+trainer.gradient_clip=1"],
        ["there is no setting 'trainer.gradient_clip'; did you mean trainer.gradient_clip_val"],
    ),
    (["physics._target_=nosuch.op"], ["physics._target_ must be", "nosuch.op", "No module named"]),
    (["physics._target_=deepinv.physics.Nosuch"], ["physics._target_ must be", "deepinv.physics.Nosuch"]),
    (["physics._target_=.operators"], ["physics._target_ must be", "'.operators'"]),
    (["num_particles=two"], ["num_particles", "two"]),
    (["num_steps=1.5"], ["error: num_steps must be int, got 1.5"]),
    (["method.gamma=strong"], ["method.gamma", "float", "strong"]),
    (["method.augmented=3"], ["method.augmented", "bool", "3"]),
    (["data.limit=all"], ["data.limit", "int or null", "all"]),
    (["seed=luck"], ["error: seed must be int, got 'luck'"]),
    (["data.images=[a,b]"], ["data.images", "a"]),
    (["task=toy=2"], ["'='"]),
    (["preset=fast"], ["preset", "num_steps=14"]),
    (["method.zeta=2"], ["method.zeta", "set method.guidance_scale"]),
    (["method=mixture"], ["method=mixture", "choose method=dwgf"]),
    (["task=super_resolution", "data.mask=half"], ["there is no setting 'physics.mask'", "factor, filter"]),
    (["task=super_resolution", "physics.mask=half"], ["there is no setting 'physics.mask'"]),
    (["no_equals_sign"], ["no_equals_sign"]),
    (["~callbacks"], ["callbacks is missing", "leave ~callbacks"]),
    (["~trainer"], ["trainer is missing"]),
    (["physics=null"], ["physics is missing", "physics=null"]),
]


@pytest.mark.parametrize(("given", "said"), BAD_COMMANDS, ids=[" ".join(given) for given, _ in BAD_COMMANDS])
def test_a_bad_command_line_is_one_line_and_exit_code_2(given: list[str], said: list[str], small: list[str]) -> None:
    code, printed = train(*small[:1], *given, small[-1])
    assert code == 2, printed
    line = error_line(printed)
    for words in said:
        assert words in line


def test_an_unknown_option_is_not_waved_through_with_a_plus(small: list[str]) -> None:
    # Hydra's own advice is to append a + , which would be accepted and do nothing
    _, printed = train("foo=1")
    assert "+foo=1" not in error_line(printed)


def test_one_broken_image_does_not_stop_the_others(small: list[str], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "c"):
        Image.new("RGB", (32, 32), "red").save(photos / f"{name}.png")
    (photos / "b.png").write_text("no picture")
    code, printed = train(*small, f"data.images={photos}", "data.limit=null")
    assert code == 1
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("b: ")]
    assert "can't be read as an image" in line
    assert str(photos / "b.png") in line
    assert "results of 2 of 3 measurements" in printed
    for name, finished in (("a", True), ("b", False), ("c", True)):
        assert (tmp_path / "run" / name / "metrics.json").is_file() is finished
    rows = (tmp_path / "run" / "summary.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["name", "a", "c", "mean"]


def test_a_missing_hub_model_says_how_to_get_it(small: list[str]) -> None:
    code, printed = train("prior.pretrained=nobody/nothing", "prior.local_files_only=true", *small[1:])
    assert code == 1
    assert "`hf download nobody/nothing`" in error_line(printed)


def in_its_own_process(*arguments: object) -> tuple[int, str]:
    process = start_train(*arguments, new=True)
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


@pytest.mark.parametrize(
    ("run", "code"),
    [
        (lambda files: in_its_own_process("task=paint", f"output_dir={files / 'run'}"), 2),
        (lambda files: in_its_own_process(f"resume={files / 'empty'}"), 1),
    ],
    ids=["command", "value"],
)
def test_the_shell_sees_the_exit_code(run: Callable, code: int, files: Path) -> None:
    before = sorted(os.listdir(files))
    returned, printed = run(files)
    assert returned == code, printed
    error_line(printed)
    assert sorted(os.listdir(files)) == before


def test_help_is_no_error() -> None:
    code, printed = train("--help")
    assert code == 0
    for word in ("inpaint", "super_resolution", "rlsd_paper", "num_particles"):
        assert word in printed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["evalute", "outputs/run"], ["'evalute'", "only app, calibrate, conformal, doctor, evaluate, study"]),
        (["inpaint"], ["'inpaint'", "only app, calibrate, conformal, doctor, evaluate, study", "name=value"]),
    ],
)
def test_an_unknown_subcommand_is_one_line(given: list[str], said: list[str]) -> None:
    code, printed = train(*given)
    assert code == 2
    line = error_line(printed)
    for words in said:
        assert words in line


def test_evaluate_and_study_are_subcommands(tmp_path: Path) -> None:
    code, printed = train("evaluate", tmp_path / "nowhere")
    assert code == 1
    assert "there is no such folder" in error_line(printed) and str(tmp_path / "nowhere") in printed
    code, printed = train("study", tmp_path)
    assert code == 1
    assert "has no multirun.yaml" in error_line(printed)


SETTINGS = OmegaConf.create(
    {
        "num_steps": 3,
        "method": {"gamma": 0, "seed": 0, "repulsion_until": 1, "num_steps": 3},
        "physics": {"sigma": 0, "mask": "half"},
        "data": {"limit": 1, "seed": 0},
        "prior": {"pretrained": "p"},
        "features": {"pretrained": "f"},
    }
)


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        ("gamma must be at least 0, got -1", "method.gamma must be at least 0, got -1"),
        ("sigma: a number is expected, got x", "physics.sigma: a number is expected, got x"),
        (
            "a mask is expected, got mask=halve; set mask='half'",
            "a mask is expected, got physics.mask=halve; set physics.mask='half'",
        ),
        ("num_steps must be from 1 to 1000", "num_steps must be from 1 to 1000"),  # has no group
        ("data.limit must be 1", "data.limit must be 1"),  # has one already
        ("'runs/gamma=1/limit: x' can't be read", "'runs/gamma=1/limit: x' can't be read"),  # a path
        ("the mask hides every pixel", "the mask hides every pixel"),  # a word
        ("pretrained must be a folder", "prior.pretrained must be a folder"),  # of two groups, raised in neither
    ],
)
def test_arguments_in_messages_get_their_group(raised: str, shown: str) -> None:
    assert explain(InputError(raised), SETTINGS) == (shown, 1)
    assert explain(InputError(raised)) == (raised, 1)


def test_an_argument_of_two_groups_belongs_to_the_part_that_raised(tmp_path: Path) -> None:
    def message(call: Callable) -> str:
        with pytest.raises(InputError) as caught:
            call()
        return explain(caught.value, OmegaConf.create({**SETTINGS, "data": {"images": 1}, "features": {"images": 1}}))[
            0
        ]

    assert message(lambda: find_images(tmp_path)).startswith("data.images must be a folder with images")


@pytest.mark.parametrize("name", ["", " ", "''"])
def test_a_run_needs_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed = train(f"output_dir={name}")
    assert code == 2 and "output_dir must be a folder" in error_line(printed)


@pytest.mark.parametrize("words", ["set `allow_pickle=True`", "use the `sigma=` keyword", "`seed: int` is expected"])
def test_what_a_library_calls_its_argument_is_no_setting_here(words: str) -> None:
    prior, physics, data = {"allow_pickle": False}, {"sigma": 1}, {"seed": 0}
    cfg = OmegaConf.create({"prior": prior, "physics": physics, "data": data, "method": {}, "features": {}})
    assert explain(InputError(words), cfg) == (words, 1)


@pytest.mark.parametrize(
    ("damaged", "content"),
    [
        (".hydra/config.yaml", b"prior: {pretrained: data"),
        (".hydra/config.yaml", b""),
        (".hydra/config.yaml", b"\xff\xfe\x00"),
        (".hydra/choices.yaml", b"task: ["),
        ("chosen.json", b'{"precision": '),
        ("chosen.json", b"[1, 2]"),
    ],
)
def test_a_damaged_run_is_one_line_when_it_is_resumed(damaged: str, content: bytes, small: list[str]) -> None:
    folder = Path(small[-1].partition("=")[2])
    code, printed = train(*small)
    assert code == 0, printed
    (folder / damaged).write_bytes(content)
    code, printed = train(f"resume={folder}")
    assert code == 1 and damaged in error_line(printed)


@pytest.mark.parametrize("port", ["99999", "0", "65536"])
def test_a_port_that_no_machine_has_is_one_line(port: str, capsys: pytest.CaptureFixture) -> None:
    assert app.main(["--port", port]) == 1
    assert error_line(capsys.readouterr().err) == f"error: port must be from 1 to 65535, got {port}"


@pytest.mark.parametrize("given", [[], ["data.images=photographs"], ["num_steps=3"]])
def test_the_embedded_calibration_is_not_measured_anew_by_accident(given: list[str], capsys) -> None:
    assert calibrate.main(given) == 1
    assert "prior must be named" in error_line(capsys.readouterr().err)
