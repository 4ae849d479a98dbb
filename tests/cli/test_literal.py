"""Paths and prompts mean what was typed, whatever their characters mean in Hydra's grammar."""

import os
import random
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from support.command import PROJECT, train

from rlsd_lightning.cli.literal import MASKS, NUMBERS, PATHS, TEXTS, as_typed, corrected
from rlsd_lightning.cli.settings import make_paths_absolute
from rlsd_lightning.errors import printable
from rlsd_lightning.operators import inpainting

ALPHABET = " aZ019_-.,:;=+~#@%&*?!|/\\()[]{}<>'\"`^$äßé日\N{ROCKET}\t\udcf6"
"""Characters of file names, with those that a grammar or a shell has a use for."""


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DictConfig]:
    """Settings as Hydra reads them from a command line, from a small configuration with every path and text."""
    configs = tmp_path_factory.mktemp("configs")
    base = OmegaConf.create({})
    for name in (*PATHS, *TEXTS, *NUMBERS):
        OmegaConf.update(base, name, None, force_add=True)
    OmegaConf.save(base, configs / "literal.yaml")

    def compose_typed(*arguments: str) -> DictConfig:
        with initialize_config_dir(str(configs), version_base="1.3"):
            return compose("literal", as_typed(arguments))

    return compose_typed


@pytest.mark.parametrize(
    "value",
    [
        "build/cases/größe/a.png",
        "photo (1).png",
        "gamma=0.1",
        "a#1.png",
        "a man, smiling",
        "1984",
        "2024_11_26",
        "1e5",
        "true",
        "nan",
        "it's",
        "'tis a man's",
        '"one" and "two"',
        "{a: b}",
        "[2024] faces/*.png",
        "faces/[ab].png",
        "choice(a,b)",
        "glob(*)",
        "C:\\faces\\",
        " spaces at both ends ",
        "two\nlines",
        "costs ${5} and ${",
        "a~b",
        "",
        "null.png",
    ],
)
def test_a_value_is_what_was_typed(value: str, composed: Callable) -> None:
    names = ("data.images", "prior.prompt", "output_dir", "physics.mask")
    cfg = composed(*(f"{name}={value}" for name in names))
    assert [OmegaConf.select(cfg, name) for name in names] == [value] * len(names)


@pytest.mark.parametrize("seed", range(3))
def test_random_names_survive(seed: int, composed: Callable) -> None:
    chance = random.Random(seed)
    names = ["".join(chance.choices(ALPHABET, k=chance.randint(1, 12))) for _ in range(20)]
    for name in names:
        if name.startswith(("~", "[")) and (name[0] == "~" or name.endswith("]")):
            continue  # a home folder, a list
        settings = ["data.images", "prior.prompt", "resume"]
        cfg = composed(*(f"{setting}={name}" for setting in settings))
        for setting in settings:
            assert OmegaConf.select(cfg, setting) == name, ascii(name)
        # processes that Lightning starts are given the arguments of the first
        once = as_typed([f"data.images={name}"])
        assert as_typed(once) == once, ascii(name)


def test_null_lists_quotes_and_interpolations_keep_their_meaning(composed: Callable) -> None:
    cfg = composed(
        "data.images=null",
        "data.measurement=[größe/a.png,b (1).png, 1984]",
        "data.range=[0,255]",
        "prior.prompt='a man, \\'smiling\\''",
        'prior.negative_prompt="#"',
        "resume=${prior.prompt}",
        "data.axes=NULL",
        "+physics.code=[a,'b,c',null]",
    )
    assert cfg.data.images is None and cfg.data.axes is None
    assert cfg.data.measurement == ["größe/a.png", "b (1).png", "1984"]
    assert cfg.prior.prompt == "a man, 'smiling'" == cfg.resume
    assert cfg.prior.negative_prompt == "#"
    assert cfg.physics.code == ["a", "b,c", None]


def test_numbers_stay_numbers(composed: Callable) -> None:
    cfg = composed("data.range=[-160,240]", "physics.angles=[0,10.5,20]")
    assert cfg.data.range == [-160, 240] and cfg.physics.angles == [0, 10.5, 20]
    assert composed("physics.angles=20").physics.angles == 20
    assert composed("data.range=0,255").data.range == "0,255"
    assert composed("physics.angles=ä (1).npy").physics.angles == "ä (1).npy"


def test_a_long_list_of_numbers_is_no_file() -> None:
    numbers = ",".join(f"{number / 10:.1f}" for number in range(1800))
    cfg = OmegaConf.create({"physics": {"angles": numbers}})
    make_paths_absolute(cfg)
    assert cfg.physics.angles == numbers


def test_names_of_masks_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for mask in MASKS:
        (tmp_path / mask).mkdir()
        for value, expected in ((mask, mask), (f"./{mask}", str(tmp_path / mask))):
            cfg = OmegaConf.create({"physics": {"mask": value}})
            make_paths_absolute(cfg)
            assert cfg.physics.mask == expected
        assert inpainting((3, 16, 16), mask=mask).mask.mean() < 1


def test_auto_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auto").mkdir()
    cfg = OmegaConf.create({"prior": {"tiny_decoder": "auto"}})
    make_paths_absolute(cfg)
    assert cfg.prior.tiny_decoder == "auto"


def test_a_tilde_is_the_home_folder_of_paths_only(composed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ä b")
    cfg = composed(
        "data.images=~/faces", "prior.pretrained=~", "resume=a~b", "prior.prompt=~ tilde", "physics.mask=[~/a,b]"
    )
    assert cfg.data.images == "/home/ä b/faces"
    assert cfg.prior.pretrained == "/home/ä b"
    assert cfg.resume == "a~b"
    assert cfg.prior.prompt == "~ tilde"
    assert cfg.physics["mask"] == ["/home/ä b/a", "b"]


@pytest.mark.parametrize("flag", ["-m", "--multirun", "hydra.mode=MULTIRUN", "experiment=study/steps"])
def test_a_multirun_and_a_study_keep_the_grammar(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    arguments = [flag, "data.images=a.png,b.png", "prior.prompt=1984", "physics.mask=half,box", "prior.prompt=~"]
    assert as_typed(arguments) == arguments
    assert as_typed([flag, "data.images=~/photos"]) == [flag, "data.images=/home/me/photos"]


@pytest.mark.parametrize(
    "argument",
    [
        "method.gamma=0,5",
        "data.images=faces/a-1.png",
        "~data.images",
        "task=inpaint",
        "--help",
        "seed=1",
        "resume=a/b c",
    ],
)
def test_what_hydra_reads_rightly_is_left_alone(argument: str) -> None:
    assert as_typed([argument]) == [argument]


@pytest.mark.parametrize("value", ["a (b", "größe", "x=y", "it's", "#1"])
def test_what_is_refused_can_be_copied_from_the_error(value: str, composed: Callable) -> None:
    with pytest.raises(HydraException):
        composed(f"+other={value}")
    (typed,) = shlex.split(corrected(f"+other={value}", []))
    assert composed(typed).other == value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["trainer.accelerator=größe"], "type: 'trainer.accelerator=\"größe\"'"),
        (["prior.prompt=a", "man,", "smiling"], "type: 'prior.prompt=a man, smiling'"),
        (["seed=1", "(2)"], "type: 'seed=1 (2)'"),
        (["(2)"], "settings are given as name=value"),
    ],
)
def test_the_command_line_says_what_to_type(given: list[str], said: str) -> None:
    code, printed = train(*given)
    assert code == 2, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert line.endswith(said), line


@pytest.mark.parametrize("folder", ["größe (1), #2", "2024_11_26", os.fsdecode(b"gr\xf6n")], ids=ascii)
def test_a_run_in_an_odd_folder_is_written_and_resumed(folder: str, small: list[str], tmp_path: Path) -> None:
    photo = tmp_path / folder / "it's [a] photo.png"
    photo.parent.mkdir()
    photo.write_bytes((PROJECT / "data/faces/heldout/000.png").read_bytes())
    is_utf8 = printable(folder) == folder
    run = (tmp_path / folder if is_utf8 else tmp_path) / "run"
    settings = [f"data.images={photo.parent}", "num_steps=2", "prior.prompt=a man, smiling #1"]
    code, printed = train(*small, *settings, f"output_dir={run}")
    assert code == 0, printed
    kept = OmegaConf.load(run / ".hydra" / "config.yaml")
    assert (kept.data.images, kept.prior.prompt) == (str(photo.parent), "a man, smiling #1")
    assert (run / photo.stem / "metrics.json").is_file()
    code, printed = train(f"resume={run}")
    assert code == 0 and "finished before" in printed, printed
    if not is_utf8:
        code, printed = train(*small, *settings, f"output_dir={tmp_path / folder / 'run'}")
        assert code == 1 and "error: output_dir must be a name in UTF-8" in printed
