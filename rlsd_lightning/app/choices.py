"""What can be chosen on the page, and the settings of the command line that say the same."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rlsd_lightning.errors import InputError

__all__ = [
    "FACES",
    "PAINTED",
    "PHOTOS",
    "PRIORS",
    "TASKS",
    "Choice",
    "Strength",
    "Task",
    "checkpoint_settings",
    "name_of",
]

PAINTED = "inpaint"
"""The task whose mask is painted."""
FACES, PHOTOS = "Cartoon faces", "Photographs"
PRIORS = {FACES: ("prior=faces",), PHOTOS: ("prior=photos",)}
"""Priors that come with the package, and their settings."""


class Strength(NamedTuple):
    """How much a task takes away.

    Attributes:
        setting: Name on the command line.
        label: Name on the page.
        low: Least value, with ``high`` and ``step`` those of the slider.
        value: The first value.
    """

    setting: str
    label: str
    low: float
    high: float
    step: float
    value: float


class Task(NamedTuple):
    """What is solved: its label on the page, and its strength if it has one."""

    label: str
    strength: Strength | None = None


TASKS = {
    PAINTED: Task("Fill in what I paint over"),
    "super_resolution": Task("Enlarge", Strength("physics.factor", "Times smaller than the result", 4, 8, 4, 4)),
    "gaussian_deblur": Task("Sharpen", Strength("physics.std", "Blur, in pixels", 0.5, 5, 0.5, 1.5)),
    "denoise": Task("Remove noise", Strength("physics.sigma", "Noise, black to white is 2", 0.05, 1, 0.05, 0.3)),
    "colorize": Task("Colour"),
    "jpeg": Task("Undo JPEG", Strength("physics.quality", "JPEG quality", 1, 50, 1, 5)),
}
"""Tasks by their names on the command line."""


def checkpoint_settings(family: str, where: str) -> tuple[str, ...]:
    """Settings of a checkpoint of some family, such as ``sd15``.

    Raises:
        InputError: If no place is given.
    """
    if not where.strip():
        raise InputError("pretrained: a checkpoint's folder is expected, got nothing; type its path")
    return f"prior={family}", f"prior.pretrained={where.strip()}"


def name_of(setting: str) -> str:
    """Name of a setting or choice, which may be added (``+name=value``) or removed (``~name``)."""
    return setting.lstrip("+~").split("=")[0]


@dataclass(frozen=True)
class Choice:
    """All that is chosen for one run.

    Attributes:
        picture: File of the picture.
        mask: File of the mask, white where the picture is seen; for ``PAINTED`` only.
        task: Name of the task.
        strength: Value of its strength.
        is_damaged: Whether the picture is the measurement itself, not the clean image that one is simulated from.
        prior: Settings of the prior.
        side: Longest side in pixels; None: the prior's.
        particles: Number of particles.
        gamma: Strength of the repulsion.
        steps: Number of steps.
        seed: Seed of all noise.
        given: Settings that the page was started with; those above win.
    """

    picture: Path
    mask: Path | None
    task: str
    strength: float | None
    is_damaged: bool
    prior: tuple[str, ...]
    side: int | None
    particles: int
    gamma: float
    steps: int
    seed: int
    given: tuple[str, ...] = ()

    def settings(self, below: Path | None = None) -> list[str]:
        """The settings, with the paths of files relative to a folder, if one is given."""

        def path(file: Path) -> Path:
            return file if below is None else file.relative_to(below)

        strength = TASKS[self.task].strength
        data = "data.measurement" if self.is_damaged else "data.images"
        own = [
            *self.prior,
            f"task={self.task}",
            f"{data}={path(self.picture)}",
            *([f"physics.mask={path(self.mask)}"] if self.mask is not None else []),
            *([f"{strength.setting}={self.strength:g}"] if strength is not None else []),
            *([f"prior.image_size={self.side}"] if self.side is not None else []),
            f"num_particles={self.particles}",
            f"method.gamma={self.gamma:g}",
            f"num_steps={self.steps}",
            f"seed={self.seed}",
        ]
        names = {name_of(item) for item in own}
        return [*(item for item in self.given if name_of(item) not in names), *own]

    def command(self, below: Path) -> str:
        """The command line that does the same in a folder."""
        return shlex.join(["rlsd", *self.settings(below)])

    def title(self, number: int) -> str:
        """A run's name in the list of runs."""
        return f"{number} · {TASKS[self.task].label} · repulsion {self.gamma:g} · seed {self.seed}"
