#!/usr/bin/env bash
# One GPU against several (NCCL) with the same command: the particles that they end with, then the speed in both modes.
#
#   bash benchmarks/gpus.sh                          # all GPUs of this machine
#   bash benchmarks/gpus.sh 4 prior=sd15             # four of them, with further settings of train.py
#   ACCELERATOR=cpu bash benchmarks/gpus.sh 2        # two processes on the CPU (gloo)
set -euo pipefail
cd "$(dirname "$0")/.."
accelerator=${ACCELERATOR:-gpu}
processes=${1:-$(nvidia-smi --list-gpus | wc -l)}
shift || true
if [ "$processes" -lt 2 ]; then
    echo "error: at least 2 GPUs are expected, got $processes; name a number of processes with ACCELERATOR=cpu" >&2
    exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

for devices in 1 "$processes"; do
    python train.py task=inpaint trainer.accelerator="$accelerator" trainer.devices="$devices" parallel=particles \
        method.particle_chunk=1 num_particles=$((2 * processes)) output_dir="$folder/$devices" "$@"
done
python - "$folder/1" "$folder/$processes" <<'PYTHON'
import sys
from pathlib import Path

from safetensors.torch import load_file

one, several = (load_file(next(Path(run).glob("*/particles.safetensors")))["x"] for run in sys.argv[1:])
difference = (one - several).abs()
print(f"difference of the particles: mean {difference.mean():.2g}, largest {difference.max():.2g} of a range of 2")
PYTHON
python benchmarks/scaling.py --accelerator "$accelerator" --processes "$processes" "$@"
