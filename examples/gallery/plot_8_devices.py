"""
Many devices
============

Two processes share the particles of one measurement. On a machine with GPUs each process has one; here both run on the CPU and exchange
tensors through gloo. The result is the same as on one device.
"""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from safetensors.torch import load_file

# %%
# The script
# ----------
# Lightning starts the processes and runs the whole script in each of them. A notebook cannot be run twice, so the script is a file. The
# noise of the measurement has a seed, because both processes must have the same ``y``. With ``particle_chunk=1`` the networks see one
# particle at a time. Sums then have the same order on any number of devices.

SCRIPT = """
import sys

import torch

from rlsd_lightning import StableDiffusionPrior, embedded, solve
from rlsd_lightning.images import load_image
from rlsd_lightning.operators import inpainting

devices = int(sys.argv[1])
prior = StableDiffusionPrior(embedded("priors/faces"))
physics = inpainting(prior.image_shape, mask="half")
torch.manual_seed(0)
y = physics(load_image(embedded("faces/heldout/000.png"), 64, 64))
trainer = {"accelerator": "cpu", "devices": devices, "enable_progress_bar": False}
result = solve(y, physics, prior, num_steps=10, particle_chunk=1, trainer=trainer)
result.save(f"on_{devices}")
"""
Path("half_face.py").write_text(SCRIPT, encoding="utf-8")

# %%
# On two devices and on one
# -------------------------
# ``accelerator="gpu"`` is all that a machine with two GPUs needs. ``torchrun`` and ``srun`` can start the processes too.

environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the same in both runs
for devices in ("2", "1"):
    subprocess.run([sys.executable, "half_face.py", devices], check=True, env=environment)

two, one = (load_file(f"on_{devices}/particles.safetensors")["x"] for devices in (2, 1))
print(f"largest difference between the particles: {(two - one).abs().max():.1e}")

# %%
# Each process computed two particles. The pictures after two processes (top) and one (bottom):

figure, axes = plt.subplots(2, 1, figsize=(9, 3.6), layout="constrained")
for axis, folder in zip(axes, ["on_2", "on_1"], strict=True):
    axis.imshow(plt.imread(f"{folder}/grid.png"))
    axis.axis("off")

# %%
# On the command line
# -------------------
# ``rlsd task=inpaint trainer.devices=2`` does the same, and deals many measurements to the devices. :doc:`/devices` has several
# machines and SLURM.
plt.show()
