"""What answers at once: neither torch nor Lightning is imported for help and a wrong command line."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from support.command import PROJECT, TRAIN, train

from rlsd_lightning.cli import command as cli
from rlsd_lightning.cli import program
from rlsd_lightning.cli.help import GROUPS, OTHER_GROUPS, comments_of, help_text
from rlsd_lightning.resources import CONFIGS

HEAVY = ("torch", "lightning", "diffusers", "transformers", "deepinv", "matplotlib")
QUICK = (
    [],
    ["--help"],
    ["--version"],
    ["task=paint"],
    ["method.gama=1"],
    ["num_particles=two"],
    ["+method.gama=1"],
    ["nonsense"],
    ["resume=nowhere"],
    ["calibrate", "--help"],
    ["doctor", "--help"],
    ["doctor", "prior=fases"],
    ["calibrate", "prior.weight=float16"],
)
SCRIPT = f"""
import contextlib, runpy, sys
import rlsd_lightning
for arguments in {QUICK!r}:
    sys.argv = ["train.py", *arguments]
    with contextlib.suppress(SystemExit):
        runpy.run_path({str(TRAIN)!r}, run_name="__main__" if arguments else "imported")
    print(arguments, "imports", {{*sys.modules}} & {{*{HEAVY!r}}} or "nothing heavy")
"""


def test_help_and_a_wrong_command_line_import_nothing_heavy(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    said = [line for line in done.stdout.splitlines() if " imports " in line]
    assert said == [f"{arguments} imports nothing heavy" for arguments in QUICK], done.stderr
    assert "there is no task=paint" in done.stderr
    assert "num_particles must be int, got 'two'" in done.stdout


@pytest.mark.parametrize("subcommand", ["calibrate", "doctor"])
def test_subcommands_with_settings_start_in_a_process_of_their_own(subcommand: str, tmp_path: Path) -> None:
    # in this one Hydra's configuration of a run may be set
    command = [sys.executable, str(TRAIN), subcommand, "prior=pixel", "prior.pretrained=nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "complete diffusers folder or a model that can be fetched, got 'nowhere'" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("first", "shown"), [("train.py", "python train.py"), ("/repo/train.py", "python train.py"), ("/bin/rlsd", "rlsd")]
)
def test_messages_name_the_command_that_was_used(first: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [first])
    assert program() == shown
    assert f"\n  {shown} task=inpaint  " in help_text([])


def test_version() -> None:
    code, printed = train("--version")
    assert code == 0
    assert printed.startswith("rlsd-lightning ")


# --- help ----------------------------------------------------------------------------------------------------------


def test_help_starts_with_commands_and_has_every_group() -> None:
    code, printed = train("--help")
    assert code == 0
    assert printed.splitlines()[2] == "Commands to copy"
    assert all(line.startswith("  python train.py ") for line in printed.splitlines()[3:9])
    assert {*GROUPS, *OTHER_GROUPS} == {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}
    for group in GROUPS:
        for file in (CONFIGS / group).rglob("*.yaml"):
            option = file.relative_to(CONFIGS / group).with_suffix("")
            assert (f"\n  {group}={option} " in printed) is not file.name.startswith("_")
    assert "_base" not in printed and "@package" not in printed and "${" not in printed


@pytest.mark.parametrize("without", ["logger=null", "~logger", "~experiment", "callbacks.pace=null"])
def test_help_shows_what_is_left_without_a_part(without: str) -> None:
    code, printed = train("task=inpaint", without, "--help")
    assert code == 0, printed
    assert "\n  num_steps=50" in printed and "Traceback" not in printed


def test_help_on_what_does_not_compose_is_one_line() -> None:
    code, printed = train("--help", "task=paint")
    assert code == 2
    assert (
        printed
        == "error: there is no task=paint; did you mean inpaint or inpaint_box? python train.py --help lists all\n"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's own options, in a folder whose name Hydra's grammar would not take."""
    (tmp_path / "my, conf's" / "task").mkdir(parents=True)
    (tmp_path / "my, conf's" / "task" / "holes.yaml").write_text(
        "# @package _global_\n# Holes of my own.\ndefaults:\n  - inpaint\nphysics:\n  # my noise\n  sigma: 0.07\n"
    )
    (tmp_path / "my, conf's" / "task" / "bare.yaml").write_text("# @package _global_\n")
    return tmp_path / "my, conf's"


@pytest.mark.parametrize("given", ["--config-dir {}", "--config-dir={}", "-cd {}", "-cd={}"])
def test_help_knows_the_options_of_ones_own_folder(given: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for where in (folder, folder.name):  # absolute or not
        code, printed = train(*(part.format(where) for part in given.split()), "task=holes", "num_steps=7", "--help")
        assert code == 0, printed
        for line in ("task: what to solve (now holes)", "  num_steps=7 ", "  physics.sigma=0.07 "):
            assert f"\n{line}" in printed
        assert printed.count("Holes of my own") == printed.count("my noise") == 1
        assert "\n  task=bare\n" in printed and "\n  task=inpaint " in printed
        code, printed = train(*(part.format(where) for part in given.split()), "task=bare", "-h")
        assert code == 0 and "(now bare)" in printed


@pytest.mark.parametrize("given", [["--config-dir", "nowhere"], ["-cd=nowhere"], ["--config-dir"]])
def test_a_wrong_folder_of_options_is_one_line(given: list[str]) -> None:
    code, printed = train("--help", *given)
    assert code == 2
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "--config-dir" in printed


COMPOSITIONS = [
    [],
    ["task=inpaint_box", "num_steps=7", "method.gamma=0.5"],
    ["task=toy"],
    ["task=generate", "prior=sd3"],
    ["experiment=paper/phase_retrieval"],
    ["experiment=study/gamma_lambda"],
]


@pytest.mark.parametrize("overrides", COMPOSITIONS, ids=" ".join)
def test_help_shows_every_setting_with_its_value_and_comment(overrides: list[str]) -> None:
    _, settings = help_text(overrides).split("\nSettings of this composition\n")
    lines = settings.splitlines()
    shown = [number for number, line in enumerate(lines) if line.startswith("  ") and not line.startswith("   ")]
    names = {lines[number].split("=")[0].strip() for number in shown}
    for number in shown:  # beside the value, or on the next line
        assert "  " in lines[number].strip() or lines[number + 1].startswith("   "), lines[number]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides)
        # every line can be copied: given as overrides, they change nothing
        copied = [lines[number].strip().split("  ")[0] for number in shown]
        again = compose("train", [*overrides, *(one for one in copied if "<time>" not in one and "=???" not in one)])
    for name in names - {"output_dir"}:
        given, shown_as = OmegaConf.select(cfg, name), OmegaConf.select(again, name)
        assert shown_as == (str(given).removeprefix(f"{PROJECT}/") if isinstance(given, str) else given), name
    for group, repeated in (("method", "num_steps"), ("data", "seed")):
        assert f"{group}.{repeated}" not in names
    assert {f"method.{name}" for name in cfg.method if not name.startswith("_")} - names <= {
        "method.num_particles",
        "method.num_steps",
        "method.seed",
    }


def test_comments_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "option.yaml"
    file.write_text(
        "# @package _global_\n# What it is.\n# In two lines.\ndefaults:\n  - base\n# above\na: 1\nb: 2  # behind\n"
        "part:\n  # of the part\n  _target_: x\n  # deep\n  # and long\n  c: [1, 2]\n  d: '# none'\n"
    )
    assert comments_of(file, "p") == {
        "p": "What it is. In two lines.",
        "p.defaults": "What it is. In two lines.",
        "p.a": "above",
        "p.b": "behind",
        "p.part": "of the part",
        "p.part.c": "deep and long",
    }


def test_ctrl_c_before_a_run_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["rlsd", "task=inpaint"])
    monkeypatch.setattr(cli, "compose_and_run", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as stop:
        cli.hydra_app()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped\n"
