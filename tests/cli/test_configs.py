"""Every yaml under configs/ composes, runs end to end on the tiny prior, and says what its keys mean."""

import csv
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from support.command import PROJECT, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlsd_lightning import embedded
from rlsd_lightning.cli import command
from rlsd_lightning.cli.settings import make_paths_absolute, move_older, with_present_names
from rlsd_lightning.signatures import own_signature

CONFIGS = PROJECT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
# studies are many runs: test_study.py; names with an underscore are bases of others; data sets are fetched: test_data.py
OPTION_FILES = [
    file
    for file in FILES
    if file.parent.name not in ("configs", "study")
    and not file.name.startswith("_")
    and "images: deepinv:" not in file.read_text()
]
NAMES = [file.relative_to(CONFIGS).with_suffix("") for file in OPTION_FILES]
OPTIONS = [(name.parts[0], "/".join(name.parts[1:])) for name in NAMES]
# a run of task=inpaint has the other defaults too
DEFAULT = {
    next(iter(chosen.items())) for chosen in OmegaConf.load(CONFIGS / "train.yaml").defaults if chosen != "_self_"
}
RUN = [option for option in OPTIONS if option == ("task", "inpaint") or option not in DEFAULT]
SHOWN = {  # beside the truth and the particles, where the measurement is no picture
    "phase_retrieval": set(),
    **{task: {"pseudo_inverse"} for task in ("compressed_sensing", "single_pixel", "tomography", "mri")},
}
IMAGE_METRICS = {
    "psnr_mean",
    "psnr_best",
    "psnr_of_mean",
    "ssim_mean",
    "lpips_mean",
    "vendi",
    "residual",
    "num_particles",
    "num_steps",
    "seconds",
}


def is_toy(option: str) -> bool:
    return option in ("toy", "gmm")


@pytest.fixture
def small(tiny_prior_folder: Path, tiny_features_folder: Path, tmp_path: Path) -> list[str]:
    """Overrides for the smallest run on images."""
    return [
        f"prior.pretrained={tiny_prior_folder}",
        "num_steps=3",
        "num_particles=2",
        f"output_dir={tmp_path / 'run'}",
    ]


def overrides(group: str, option: str, small: list[str], folders: dict[str, Path]) -> list[str]:
    """The command line for one option of one group; whatever is called toy only fits the toy problem."""
    if group == "prior" and option in folders:
        size = [f"{group}.image_size=null"] if option in ("lcm", "photos") else []
        return [f"{group}={option}", f"prior.pretrained={folders[option]}", *size, *small[1:]]
    chosen = [] if (group, option) == ("task", "toy") else [f"{group}={option}"]
    if is_toy(option):
        return ["task=toy", *chosen, *small[1:]]
    if (group, option) == ("features", "vit") or group == "experiment":
        chosen.append(f"features.pretrained={embedded('features/faces')}")
    if option.startswith("paper/"):
        return [*chosen, small[0], *small[1:]]
    if (group, option) == ("data", "prompt"):
        return ["task=generate", *small]
    return [*chosen, *small]


def check_common(folder: Path, name: str) -> dict:
    target = folder / name
    assert (folder / ".hydra" / "config.yaml").is_file()
    assert "<html" in (folder / "report.html").read_text()
    rows = list(csv.DictReader((folder / "summary.csv").open()))
    assert [row["name"] for row in rows] == [name, "mean"]
    assert (target / "checkpoints" / "last.ckpt").is_file()
    logger = OmegaConf.load(folder / ".hydra" / "config.yaml").logger._target_
    curves = "metrics.csv" if logger.endswith("CSVLogger") else "events.out.tfevents.*"
    assert list(target.rglob(curves))
    metrics = json.loads((target / "metrics.json").read_text())
    assert (metrics["name"], metrics["num_particles"], metrics["num_steps"]) == (name, 2, 3)
    assert metrics["seconds"] > 0
    return metrics


def check_images(folder: Path) -> None:
    metrics = check_common(folder, "000")
    target = folder / "000"
    assert metrics.keys() >= IMAGE_METRICS
    assert metrics["psnr_best"] >= metrics["psnr_mean"] > 0
    task = OmegaConf.load(folder / ".hydra" / "config.yaml").physics._target_.rpartition(".")[2]
    shown = {"measurement", "pseudo_inverse"} & {file.stem for file in target.glob("*.png")}
    assert shown == SHOWN.get(task, {"measurement"})
    for picture in ("truth", *shown, "particles/00", "particles/01", "mean", "std", "grid"):
        with Image.open(target / f"{picture}.png") as image:
            image.load()
    with Image.open(target / "particles" / "00.png") as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")
    tensors = load_file(target / "particles.safetensors")
    assert tensors["x"].shape == (2, 3, 32, 32)
    assert tensors["z"].shape in ((2, 4, 8, 8), (2, 3, 32, 32))


def check_toy(folder: Path) -> None:
    metrics = check_common(folder, "toy")
    assert 0 <= metrics["mode_total_variation"] <= 1
    with Image.open(folder / "toy" / "grid.png") as image:
        image.load()
    assert load_file(folder / "toy" / "particles.safetensors")["x"].shape == (2, 2)


def check_generated(folder: Path) -> None:
    metrics = check_common(folder, "generated")
    assert metrics["psnr_mean"] is None
    assert metrics["residual"] == 0
    assert not (folder / "generated" / "measurement.png").exists()
    assert load_file(folder / "generated" / "particles.safetensors")["x"].shape == (2, 3, 32, 32)


@pytest.mark.parametrize(("group", "option"), RUN, ids=map("/".join, RUN))
def test_every_option_runs_and_leaves_its_results(
    group: str,
    option: str,
    small: list[str],
    tiny_folders: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if option == "lpips":
        request.getfixturevalue("with_alexnet")
    code, printed = train(*overrides(group, option, small, tiny_folders))
    assert code == 0, printed
    assert f"results of 1 of 1 measurements: {tmp_path / 'run' / 'report.html'}" in printed
    check = check_toy if is_toy(option) else check_generated if option in ("generate", "prompt") else check_images
    check(tmp_path / "run")


def test_the_paper_method_runs_on_the_toy_problem(small: list[str], tmp_path: Path) -> None:
    code, printed = train("task=toy", "method=rlsd_paper", *small[1:])
    assert code == 0, printed
    check_toy(tmp_path / "run")


def test_the_command_line_wins_over_a_task(small: list[str], tmp_path: Path) -> None:
    code, printed = train("task=toy", "method.gamma=0.5", *small[1:])
    assert code == 0, printed
    saved = OmegaConf.load(tmp_path / "run" / ".hydra" / "config.yaml")
    assert (saved.method.gamma, saved.num_steps) == (0.5, 3)


def test_a_measured_file_needs_no_truth(small: list[str], tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (200, 120, 40)).save(tmp_path / "y.png")
    mask = Image.new("L", (32, 32), 255)
    mask.paste(0, (8, 8, 24, 24))
    mask.save(tmp_path / "mask.png")
    code, printed = train(f"data.measurement={tmp_path / 'y.png'}", f"data.mask={tmp_path / 'mask.png'}", *small)
    assert code == 0, printed
    target = tmp_path / "run" / "y"
    metrics = json.loads((target / "metrics.json").read_text())
    assert metrics["psnr_mean"] is metrics["ssim_mean"] is metrics["psnr_best"] is None
    assert metrics["residual"] >= 0
    assert metrics["vendi"] >= 0
    assert (target / "measurement.png").is_file()
    assert not (target / "truth.png").exists()
    assert (tmp_path / "run" / "report.html").is_file()


def test_older_names_in_files_and_on_the_command_line_are_translated() -> None:
    def moved(kept: tuple[str, ...] = ()) -> dict:
        cfg = OmegaConf.create({"data": {"mask": "box", "kernel": None, "limit": 1}, "physics": {"mask": "half"}})
        OmegaConf.set_struct(cfg, True)
        move_older(cfg, kept)
        return OmegaConf.to_container(cfg)

    assert moved() == {"data": {"limit": 1}, "physics": {"mask": "box"}}
    assert moved(kept=("physics.mask",)) == {"data": {"limit": 1}, "physics": {"mask": "half"}}
    arguments = ["task=inpaint", "data.mask=a,b", "+data.kernel=k.npy", "data.images=data.mask=x"]
    expected = ["task=inpaint", "++physics.mask=a,b", "++physics.kernel=k.npy", "data.images=data.mask=x"]
    assert with_present_names(arguments) == expected


def test_older_names_in_a_config_file_of_the_users_are_no_unknown_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "overridden", dict)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", ["task=inpaint", "+data.mask=box", "output_dir=run"])
    assert command._check(cfg) == 0
    assert cfg.physics.mask == "box"


@pytest.mark.parametrize("name", ["data.images", "physics.mask", "callbacks.results.features.pretrained"])
def test_paths_that_a_run_reads_are_made_absolute(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    cfg = OmegaConf.create({"callbacks": {"results": {"features": None}}, "prior": {"pretrained": "some/hub"}})
    OmegaConf.update(cfg, name, "here")
    make_paths_absolute(cfg)
    assert OmegaConf.select(cfg, name) == str(tmp_path / "here")
    assert cfg.prior.pretrained == "some/hub"


@pytest.mark.parametrize(
    ("augmented", "refine_share", "num_particles"),
    [("true", 0, 1), ("true", 0.5, 3), ("true", 1, 1), ("false", 0, 3), ("false", 0.5, 1), ("false", 1, 3)],
)
def test_every_form_of_the_method_runs_with_any_number(
    augmented: str, refine_share: float, num_particles: int, small: list[str], tmp_path: Path
) -> None:
    form = [f"method.augmented={augmented}", f"method.refine_share={refine_share}", f"num_particles={num_particles}"]
    code, printed = train(*small[:3], *form, small[-1])
    assert code == 0, printed
    assert len(load_file(tmp_path / "run" / "000" / "particles.safetensors")["x"]) == num_particles


@pytest.mark.same_bits
def test_the_same_command_gives_the_same_bits_and_another_seed_does_not(small: list[str], tmp_path: Path) -> None:
    results = []
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train(*small[:4], f"seed={seed}", f"output_dir={tmp_path / run}")[0] == 0
        results.append(load_file(tmp_path / run / "000" / "particles.safetensors"))
    first, again, other = results
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["x"].equal(other["x"])
    assert not first["y"].equal(other["y"])


@pytest.mark.same_bits
def test_a_measurement_does_not_depend_on_its_company(small: list[str], tmp_path: Path) -> None:
    heldout = PROJECT / "data" / "faces" / "heldout"
    assert train(*small[:4], "data.limit=2", f"output_dir={tmp_path / 'both'}")[0] == 0
    assert train(*small[:4], f"data.images={heldout / '001.png'}", f"output_dir={tmp_path / 'alone'}")[0] == 0
    both, alone = (load_file(tmp_path / run / "001" / "particles.safetensors") for run in ("both", "alone"))
    assert all(both[name].equal(alone[name]) for name in both)


def test_curves_of_every_measurement_are_its_own(small: list[str], tmp_path: Path) -> None:
    code, _ = train(*small, "data.limit=2", "trainer.log_every_n_steps=1")
    assert code == 0
    for name in ("000", "001"):
        events = EventAccumulator(str(tmp_path / "run" / name)).Reload()
        assert len(events.Scalars("loss/total")) == 3


def paths_in(file: Path) -> list[str]:
    return re.findall(r"\$\{project:([^}]+)\}", file.read_text())


def test_files_that_a_config_names_are_shipped() -> None:
    paths = {path for file in FILES for path in paths_in(file)}
    assert paths and [path for path in paths if not (PROJECT / path).exists()] == []


def uncommented_keys(file: Path) -> list[str]:
    """Keys that hold a value and have no comment on the line above."""
    lines = file.read_text().splitlines()
    found, in_hydra = [], False
    for above, line in zip(["", *lines], lines, strict=False):
        match = re.match(r"(\s*)(\w+):(.*)$", line)
        if match is None:
            continue
        indent, key, value = match.groups()
        if not indent:
            in_hydra = key == "hydra"
        # a key without a value names a group; Hydra's own are documented by Hydra
        exempt = in_hydra or not value.strip() or key in {"_target_", "_partial_", "_convert_", "defaults"}
        if not exempt and not above.strip().startswith("#"):
            found.append(key)
    return found


def test_every_file_says_what_it_is_and_every_key_has_a_comment() -> None:
    for file in FILES:
        lines = file.read_text().splitlines()
        assert lines[lines[0] == "# @package _global_"].startswith("# "), file
        assert uncommented_keys(file) == [], file


@pytest.mark.parametrize("prior", ["sd15", "sd21-base", "sdxl", "sd3", "lcm", "ldm", "flux", "sana", "pixel", "faces"])
def test_the_network_of_cartoon_faces_is_for_their_prior_only(prior: str) -> None:
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        cfg = compose("train", [f"prior={prior}"])
    compared = cfg.features._target_.rpartition(".")[2], cfg.callbacks.results.features is not None
    assert compared == (("ViTFeatures", True) if prior == "faces" else ("LatentFeatures", False))


# --- what is said once ---------------------------------------------------------------------------------------------

DELIBERATE = {
    ("data/images", "limit"): "a first run takes one face, a call from Python all images",
    ("callbacks/default", "folder"): "a run writes its results, a call from Python returns them",
    ("prior/gmm", "std"): "wide enough for the modes to be seen in the plot",
}
"""Values of base configs that are not the Python default, and why."""
INSTANTIATION = ("_target_", "_partial_", "_convert_")


def content(file: Path) -> dict[str, Any]:
    """A file's own keys, without what it composes."""
    own = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return {key: value for key, value in own.items() if key != "defaults"}


def leaves(node: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The values by their dotted names."""
    found = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def bases(file: Path) -> list[Path]:
    """The files that a file derives from: the names in its list of defaults that override no choice."""
    listed = OmegaConf.load(file).get("defaults", [])
    group = CONFIGS / file.relative_to(CONFIGS).parts[0]
    return [group / f"{name}.yaml" for name in listed if isinstance(name, str)] if file.parent != CONFIGS else []


def inherited(file: Path) -> dict[str, Any]:
    """The values that a file gets from its bases."""
    found = {}
    for base in bases(file):
        found |= inherited(base) | leaves(content(base))
    return found


def test_no_two_configs_share_more_than_three_values() -> None:
    # leaves that have the same name in both files and equal values; what is instantiated, and how, is not counted
    values = {
        str(file.relative_to(CONFIGS)): {
            (name, str(value))
            for name, value in leaves(content(file)).items()
            if name.rpartition(".")[2] not in INSTANTIATION
        }
        for file in FILES
    }
    shared = {pair: values[pair[0]] & values[pair[1]] for pair in itertools.combinations(values, 2)}
    assert {pair: same for pair, same in shared.items() if len(same) > 3} == {}


def targets(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes that instantiate something of this package."""
    if str(node.get("_target_")).startswith("rlsd_lightning."):
        yield node
    for value in node.values():
        if isinstance(value, dict):
            yield from targets(value)


def accepted_parameters(target: Callable) -> dict[str, inspect.Parameter]:
    """Parameters of an imported target; ``**kwargs`` of a class are those of its base."""
    found = dict(inspect.signature(target).parameters)
    for base in target.__mro__[1:] if isinstance(target, type) else ():
        rest = [name for name, parameter in found.items() if parameter.kind is parameter.VAR_KEYWORD]
        if not rest or not base.__module__.startswith("rlsd_lightning."):
            break
        del found[rest[0]]
        found = {**inspect.signature(base).parameters, **found}
    return found


CHECKED = [file for file in OPTION_FILES if file.parent.name in ("prior", "features", "task", "data", "method")]
TARGETS = sorted({node["_target_"] for file in CHECKED for node in targets(content(file))})


def test_a_signature_that_is_read_is_the_imported_one() -> None:
    for target in TARGETS:
        imported, read = accepted_parameters(get_object(target)), own_signature(target)
        named = {name: parameter for name, parameter in imported.items() if parameter.kind is not parameter.VAR_KEYWORD}
        assert read.annotations.keys() == named.keys(), target
        assert read.open_ended == (len(named) < len(imported)), target
        for name, annotation in read.annotations.items():
            given = get_args(named[name].annotation)
            kinds = {"None" if kind is NoneType else getattr(kind, "__name__", "") for kind in given}
            plain = {annotation} if not kinds else set(annotation.split(" | "))
            if plain <= {"int", "float", "bool", "str", "Path", "None"}:
                assert plain == (kinds or {named[name].annotation.__name__}), (target, name)


NODES = [
    (str(file.relative_to(CONFIGS).with_suffix("")), node)
    for file in FILES
    if not bases(file)
    for node in targets(content(file))
]
"""The nodes of files that derive from no other one, with the files' names."""


def test_a_base_has_the_defaults_of_its_python_signature() -> None:
    # interpolations and ??? are no literals
    for name, node in NODES:
        parameters = accepted_parameters(get_object(node["_target_"]))
        for key, value in node.items():
            literal = not (isinstance(value, str) and ("${" in value or value == "???"))
            default = parameters[key].default if key in parameters else inspect.Parameter.empty
            if literal and default is not inspect.Parameter.empty:
                differs = value != default
                assert differs == ((name, key) in DELIBERATE), f"{key}={value!r}; {node['_target_']} has {default!r}"


def test_a_derived_config_holds_only_what_differs() -> None:
    for file in filter(bases, FILES):
        before, own = inherited(file), leaves(content(file))
        assert {name: value for name, value in own.items() if name in before and before[name] == value} == {}, file
