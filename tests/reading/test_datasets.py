"""Data sets that deepinv fetches: their pictures if they are here, and the command that fetches them if not."""

from pathlib import Path

import deepinv
import numpy as np
import pytest
import yaml
from deepinv.datasets.utils import calculate_md5_for_folder
from PIL import Image
from support.command import PROJECT

from rlsd_lightning import InputError
from rlsd_lightning.data import measurements
from rlsd_lightning.operators import denoising

SHAPE = (3, 16, 16)
FILES = sorted(file for file in (PROJECT / "configs" / "data").glob("*.yaml") if "deepinv:" in file.read_text())
NAMED = {file.stem: yaml.safe_load(file.read_text())["images"] for file in FILES}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of deepinv."""
    monkeypatch.setenv("DEEPINV_CACHE_DIR", str(tmp_path))
    return tmp_path / "datasets"


def pictures(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index + 1:02d}.png")


@pytest.mark.parametrize(
    ("kind", "place", "name"),
    [
        (deepinv.datasets.Kodak24, "Kodak24/Kodak-Lossless-True-Color-Image-Suite-master/PhotoCD_PCD0992", "kodak24"),
        (deepinv.datasets.Set14HR, "Set14/Set14_HR", "set14"),
        (deepinv.datasets.Set5HR, "Set5/Set5_HR", "set5"),
    ],
)
def test_pictures_of_a_data_set_are_measured(
    kind: type, place: str, name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(cache / place)
    digest = calculate_md5_for_folder(str(cache / place))
    monkeypatch.setattr(kind, "_checksums", dict.fromkeys(kind._checksums, digest))
    read = measurements(SHAPE, denoising, NAMED[name], limit=2)
    assert (read.names, read.available) == (["01", "02"], 3)
    assert read[0].truth.shape == (1, 3, 13, 16)  # 20x24 in its own aspect ratio


@pytest.mark.parametrize("name", NAMED)
def test_a_data_set_that_is_missing_is_one_line_with_its_command(name: str) -> None:
    with pytest.raises(InputError) as caught:
        measurements(SHAPE, denoising, NAMED[name])
    said = str(caught.value)
    assert "\n" not in said and f"'{NAMED[name]}' is not here" in said
    command = said.partition('fetch it with: python -c "import deepinv; deepinv.datasets.')[2]
    kind, _, mode = NAMED[name].removeprefix("deepinv:").partition(":")
    assert command == (f"{kind}(mode='{mode}', download=True)\"" if mode else f'{kind}(download=True)"')


@pytest.mark.parametrize("images", ["deepinv:Kodak", "deepinv:ImageFolder", "deepinv:kodak24", "deepinv:DIV2K:test"])
def test_other_names_are_refused_with_what_there_is(images: str) -> None:
    with pytest.raises(InputError, match=r"one of BSD100HR.*Kodak24|Expected `train` or `val`"):
        measurements(SHAPE, denoising, images)


def test_a_folder_of_such_a_name_is_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "deepinv")
    assert measurements(SHAPE, denoising, "deepinv").names == ["01", "02", "03"]
