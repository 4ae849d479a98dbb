"""Time to read ordinary pictures: through the door that understands every kind, and in the plain way.

python -m benchmarks.reading --count 1000
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rlsd_lightning.images import Reader
from rlsd_lightning.reading.frames import Frame

SIZE = 64
FRAME = partial(Frame.cropped, image_size=(SIZE, SIZE))


def plainly(path: Path) -> Tensor:
    """What a page of one's own would do: open, turn upright, convert, fit, scale."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if image.size != (SIZE, SIZE):
        image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 127.5 - 1


def write_pictures(folder: Path, side: int, count: int) -> list[Path]:
    """PNGs of smooth noise, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    files = []
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        files.append(folder / f"{index:04d}.png")
        small.resize((side, side), Image.Resampling.BICUBIC).save(files[-1])
    return files


def seconds(read: Callable[[Path], Tensor], files: list[Path]) -> float:
    """Processor time to read all files."""
    start = time.process_time()
    for file in files:
        read(file)
    return time.process_time() - start


def main() -> None:
    """Prints both times, alternating, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of pictures")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    reader = Reader()
    print("side  door (s)  plain (s)  ratio (median, of repeats)")
    for side in (SIZE, 256):
        with tempfile.TemporaryDirectory() as folder:
            files = write_pictures(Path(folder), side, args.count)
            assert all(plainly(file).equal(reader.image(file, FRAME)[0]) for file in files[:20])
            pairs = [
                (seconds(lambda file: reader.image(file, FRAME)[0], files), seconds(plainly, files))
                for _ in range(args.repeats)
            ]
        door, plain = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        print(f"{side:4d}  {door:8.3f}  {plain:9.3f}  {ratio:.3f}")


if __name__ == "__main__":
    main()
