"""Scans on the command line: the commands of docs/scans.md, and random scans of which half are spoiled."""

import inspect
import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from support.command import PROJECT, train
from support.operator_cases import coil_maps
from support.scans import kspace, picture

from rlsd_lightning import InputError, operators
from rlsd_lightning.cli.settings import check_settings

DOCS = (PROJECT / "docs" / "scans.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


def small_command(number: int, small: list[str], run: Path) -> list[str]:
    """Arguments of the number-th command of the documentation, for the tiny prior."""
    line = blocks("bash")[number].replace("\\\n", " ").splitlines()[-1]
    given = line.removeprefix("rlsd ").split()
    return [*given, *small[:1], "prior.image_size=64", "num_steps=2", "num_particles=1", f"output_dir={run}"]


@pytest.mark.parametrize(("number", "name"), [(0, "kspace"), (1, "sinogram")])
def test_the_example_of_the_documentation_runs(
    number: int, name: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = blocks("python")[number]
    if "skimage" in source:
        pytest.importorskip("skimage")
    (tmp_path / "data").symlink_to(PROJECT / "data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.py").write_text(source)
    runpy.run_path("scan.py")
    code, printed = train(*small_command(number, small, tmp_path / "run"))
    assert code == 0, printed
    metrics = json.loads((tmp_path / "run" / name / "metrics.json").read_text())
    assert 0 < metrics["residual_sigmas"] < 10  # of a prior that knows nothing
    with Image.open(tmp_path / "run" / name / "particles" / "00.png") as particle:
        pixels = np.asarray(particle)
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("task", ["mri", "tomography"])
def test_a_task_has_the_defaults_of_its_python_signature(task: str):
    physics = {name: value for name, value in CONFIGS[task]["physics"].items() if not name.startswith("_")}
    defaults = {name: each.default for name, each in inspect.signature(getattr(operators, task)).parameters.items()}
    assert physics == {name: value for name, value in defaults.items() if name != "image_shape"}


# Random scans


class Draw:
    """Random files and settings of one scan, which belong together until one of them is spoiled."""

    def __init__(self, number: int, folder: Path) -> None:
        self.rng, self.folder = np.random.default_rng(number), folder / str(number)
        self.folder.mkdir()
        self.shape = (3, *self.pick([(32, 32), (32, 24), (21, 16), (17, 33)]))
        self.image = picture(*self.shape[1:], seed=number)
        self.white = self.pick([None, 0.03, 1.0, 4096.0])
        self.raw = self.image if self.white is None else self.white * (self.image + 1) / 2
        self.settings: dict[str, Any] = {} if self.white is None else {"white": self.white}

    def pick(self, choices: list) -> Any:
        return choices[self.rng.integers(len(choices))]

    def save(self, name: str, values: np.ndarray) -> str:
        kind = self.pick(["npy", "npz", "pt"])
        path = self.folder / f"{name}.{kind}"
        if kind == "npy":
            np.save(path, values)
        elif kind == "npz":
            np.savez(path, values=values)
        else:
            torch.save(torch.from_numpy(np.array(values)), path)
        return str(path)

    def of_kspace(self) -> np.ndarray:
        rows, columns = self.shape[1:]
        coils = self.pick([None, 1, 3, 8])
        k = self.raw
        if coils:
            maps = coil_maps(coils, rows, columns).numpy()
            self.settings["coil_maps"] = self.save("maps", self.pick([maps, maps[None], maps.astype(complex)]))
            k = maps * k
        seen = np.broadcast_to(self.rng.random(columns) < 0.5, (rows, columns)).copy()
        seen[rows // 2 - 4 : rows // 2 + 4, columns // 2 - 4 : columns // 2 + 4] = True
        k = kspace(k) * seen
        if self.pick([True, False]):
            self.settings["mask"] = self.save("mask", self.pick([seen, seen * 255.0, seen[None].astype(np.int8)]))
        parts = np.stack((k.real, k.imag))
        return self.pick(
            [k, k[None] if coils else k[None, None], k.astype(np.complex64), parts, np.moveaxis(parts, 0, -1)]
        )

    def of_sinogram(self) -> np.ndarray:
        angles = self.pick([7, 20, [0, 10, 20, 30], [3.5, 100.0, 170.0], np.linspace(5, 120, 9)])
        self.settings |= {"angles": self.save("angles", angles) if isinstance(angles, np.ndarray) else angles}
        self.settings |= self.pick([{}, {"geometry": "fan"}, {"n_detector_pixels": 40, "rotation_axis": 19.5}])
        physics = instantiate(self.config("tomography").physics)((1, *self.shape[1:]))
        y = physics.A(torch.from_numpy(self.raw).float()[None, None])[0, 0].numpy()
        y = y if self.white is None else y * physics.scale.item()
        return self.pick([y, y.T if y.shape[0] != y.shape[1] else y, y[None], y[None, None], np.stack([y] * 2)])

    def config(self, task: str, *more: str) -> DictConfig:
        """The settings of a command."""
        given = [f"physics.{name}={json.dumps(value)}" for name, value in self.settings.items()]
        cfg = OmegaConf.create(CONFIGS[task])
        for override in OverridesParser.create().parse_overrides([*given, *more]):
            OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=False)
        return cfg


CONFIGS: dict[str, dict] = {}
"""Settings of the two tasks, composed once; those that a measurement does not need are left out."""
UNUSED = {"_target_": "rlsd_lightning.features.LatentFeatures"}


@pytest.fixture(scope="module", autouse=True)
def configs() -> None:
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        for task in ("mri", "tomography"):
            cfg = compose("train", [f"task={task}", "data.limit=null", "data.images=null"])
            CONFIGS[task] = OmegaConf.to_container(OmegaConf.masked_copy(cfg, ["physics", "data", "seed"]))
            CONFIGS[task] |= {"prior": UNUSED, "features": UNUSED, "method": UNUSED, "trainer": UNUSED}
            CONFIGS[task] |= {"callbacks": {"none": UNUSED}, "output_dir": "unused"}


def measured(draw: Draw, task: str, file: str, *more: str) -> list:
    """What a command would solve."""
    cfg = draw.config(task, f"data.measurement={json.dumps(file)}", *more)
    check_settings(cfg)
    data = instantiate(cfg.data)(draw.shape, instantiate(cfg.physics))
    return [data[index] for index in range(len(data))]


SPOILED = {
    "mri": {
        "NaN": lambda y: np.where(np.arange(y.size).reshape(y.shape) == abs(y).argmax(), np.nan, y),
        "infinity": lambda y: np.where(np.arange(y.size).reshape(y.shape) == abs(y).argmax(), np.inf, y),
        "zeros": lambda y: 0 * y,
        "too large": lambda y: 1e4 * y,
        "half": lambda y: y[..., : y.shape[-1] // 2, :],
        "one axis": lambda y: y.ravel(),
        "five scans in a row": lambda y: np.concatenate([y] * 5),
        "magnitudes": lambda y: np.abs(y).sum(0) if y.ndim > 2 else np.abs(y),
    },
    "tomography": {
        "NaN": lambda y: np.where(np.arange(y.size).reshape(y.shape) == 3, np.nan, y),
        "infinity": lambda y: np.where(np.arange(y.size).reshape(y.shape) == 3, np.inf, y),
        "too large": lambda y: 1e4 * y,
        "half": lambda y: y[..., : y.shape[-2] // 2, :],
        "one axis": lambda y: y.ravel(),
        "complex": lambda y: y + 0j,
    },
}
"""What makes an array no scan."""
BAD_SETTINGS = {
    "mri": [
        "physics.white=0",
        "physics.white=.nan",
        "physics.acceleration=0",
        "physics.mask=nowhere.npy",
        "physics.coil_maps=nowhere.npy",
        "physics.noise=poisson",
        "physics.sigma=-1",
        "physics.grey=maybe",
        "data.axes=HW",
    ],
    "tomography": [
        "physics.white=-1",
        "physics.angles=0",
        "physics.angles=[]",
        "physics.angles=nowhere.npy",
        "physics.angles=[0,north]",
        "physics.geometry=cone",
        "physics.n_detector_pixels=0",
        "physics.detector_spacing=0",
        "physics.rotation_axis=1000",
        "physics.angles=41",
        "data.range=[0,255]",
    ],
}


def a_scan(number: int, folder: Path) -> tuple[Draw, str, np.ndarray]:
    draw = Draw(number, folder)
    task = draw.pick(["mri", "tomography"])
    return draw, task, draw.of_kspace() if task == "mri" else draw.of_sinogram()


@pytest.mark.parametrize("first", range(0, 120, 30))
def test_random_scans_are_explained_by_their_image(first: int, tmp_path: Path):
    for number in range(first, first + 30):
        draw, task, values = a_scan(number, tmp_path)
        for each in measured(draw, task, draw.save("scan", values)):
            truth = torch.from_numpy(draw.image).float().expand(1, *draw.shape)
            found = each.physics.A(truth)
            assert each.y.isfinite().all()
            assert (found - each.y).norm() < 1e-3 * found.norm() + 1e-3, f"{number}: {task} {draw.settings}"


@pytest.mark.parametrize("first", range(0, 120, 30))
def test_random_scans_that_are_spoiled_are_refused_in_one_line(first: int, tmp_path: Path):
    for number in range(first, first + 30):
        draw, task, values = a_scan(number, tmp_path)
        kind = draw.pick(["array", "setting", "bytes"])
        file, more = draw.save("scan", values), []
        if kind == "array":
            what = draw.pick(list(SPOILED[task]))
            file = draw.save("scan", SPOILED[task][what](values))
        elif kind == "setting":
            what = draw.pick(BAD_SETTINGS[task])
            more = [what]
        else:
            what = "half of the bytes"
            content = Path(file).read_bytes()
            Path(file).write_bytes(content[: len(content) // 2])
        with pytest.raises((InputError, HydraException)) as caught:
            measured(draw, task, file, *more)
            pytest.fail(f"{number}: {task} with {what} was taken, with {draw.settings}")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) > 30
