"""Checkpoint files: atomic replacement, checksums, and the previous one as a backup."""

import errno
import logging
import os
import shlex
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from omegaconf import OmegaConf
from support.command import start_train, train
from support.trainers import assert_same_bits
from support.warm import TESTS

from rlsd_lightning import InputError
from rlsd_lightning.cli.messages import failure
from rlsd_lightning.cli.resume import run_folder
from rlsd_lightning.engine.checkpoints import AtomicCheckpointIO, checkpoint_to_resume
from rlsd_lightning.errors import is_of_storage


def test_a_checkpoint_comes_back_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"z": torch.arange(5)}, path)
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["z"].tolist() == [0, 1, 2, 3, 4]
    assert list(path.parent.iterdir()) == [path]


def test_a_save_that_fails_in_the_middle_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", mock.Mock(side_effect=OSError("no space left on device")))
        with pytest.raises(OSError, match="no space left"):
            writer.save_checkpoint({"z": torch.zeros(1000)}, path)
    assert path.read_bytes() == before
    assert (tmp_path / "last.ckpt.partial").is_file()
    # and the next save is not disturbed by what was left
    writer.save_checkpoint({"step": 2}, path)
    assert writer.load_checkpoint(path, weights_only=True) == {"step": 2}


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_at_every_instant_one_of_two_files_is_whole(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)
    seen = []
    original = getattr(os, function)

    def spy(*arguments) -> None:
        for statistic in (lambda: None, lambda: original(*arguments)):
            statistic()
            seen.append(writer.load_checkpoint(checkpoint_to_resume(path), weights_only=True)["step"])

    monkeypatch.setattr(os, function, spy)
    writer.save_checkpoint({"step": 2}, path)
    assert len(seen) == 4
    assert seen[0] == 1 and seen[-1] == 2
    assert set(seen) == {1, 2}


def test_a_damaged_one_is_put_aside_and_does_not_become_the_one_in_reserve(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*small, "num_steps=12", f"output_dir={run}")[0] == 0
    (run / "000" / "metrics.json").unlink()
    folder = run / "000" / "checkpoints"
    (folder / "last.ckpt").write_bytes(b"damaged")
    assert train(f"resume={run}")[0] == 0
    assert (folder / "unusable.ckpt").read_bytes() == b"damaged"
    assert checkpoint_to_resume(folder / "previous.ckpt") == folder / "previous.ckpt"


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(InputError, match=r"last\.ckpt' can't be read as a checkpoint .* remove it"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=True)


def flip_a_bit(path: Path) -> None:
    """Damages a number in the middle of a tensor, which torch itself would read without a word."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((8,), 1.5).numpy().tobytes()) + 5] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"z": torch.full((1000,), 1.5)}, path)
    flip_a_bit(path)
    assert not torch.load(path, weights_only=True)["z"].eq(1.5).all()
    with pytest.raises(InputError, match=r"last\.ckpt' can't be read as a checkpoint .*checksum"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=True)


# --- the one before ------------------------------------------------------------------------------------------------


def test_the_newest_is_taken_and_the_one_before_it_where_that_is_damaged_or_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    assert checkpoint_to_resume(last) is None
    writer = AtomicCheckpointIO()
    for step in (1, 2, 3):
        writer.save_checkpoint({"step": step}, last)
    assert sorted(tmp_path.iterdir()) == [last, previous]
    assert checkpoint_to_resume(last) == last
    assert not caplog.records
    last.write_bytes(last.read_bytes()[:300])
    with caplog.at_level(logging.WARNING):
        assert checkpoint_to_resume(last) == previous
    assert "last.ckpt' can't be read" in caplog.text and "the one before it" in caplog.text
    assert writer.load_checkpoint(previous, weights_only=True) == {"step": 2}
    last.unlink()  # killed between the two renames
    assert checkpoint_to_resume(last) == previous
    previous.write_bytes(b"")
    with pytest.raises(InputError, match=r"previous\.ckpt' can't be read"):
        checkpoint_to_resume(last)


def test_a_foreign_one_is_passed_over(tmp_path: Path) -> None:
    def check(checkpoint: dict) -> None:
        if checkpoint["run"] != "mine":
            raise InputError("the checkpoint belongs to another run")

    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"run": "mine"}, tmp_path / "last.ckpt")
    writer.save_checkpoint({"run": "another"}, tmp_path / "last.ckpt")
    assert checkpoint_to_resume(tmp_path / "last.ckpt", check) == tmp_path / "previous.ckpt"
    with pytest.raises(InputError, match="belongs to another run"):
        checkpoint_to_resume(tmp_path / "previous.ckpt", lambda held: check({"run": "another"}))


@pytest.mark.same_bits
def test_a_run_goes_on_from_the_one_before_a_damaged_one_to_the_same_bits(small: list[str], tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(*small, "num_steps=12", f"output_dir={run}")[0] == 0
    shutil.copytree(run, whole)
    (run / "000" / "metrics.json").unlink()
    last = run / "000" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-200])
    code, printed = train(f"resume={run}")
    assert code == 0, printed
    assert "Going on from the one before it" in printed
    assert "previous.ckpt" in printed
    assert_same_bits(run / "000", whole / "000")


# --- results and disks ---------------------------------------------------------------------------------------------


@pytest.mark.same_bits
@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-9])])
def test_a_damaged_result_is_made_again(damage, small: list[str], tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(*small, "num_steps=6", f"output_dir={run}")[0] == 0
    shutil.copytree(run, whole)
    damage(run / "000" / "particles.safetensors")
    code, printed = train(f"resume={run}")
    assert code == 0, printed
    assert "000: its result is incomplete or damaged and is made again" in printed
    assert_same_bits(run / "000", whole / "000")


@pytest.mark.same_bits
def test_a_disk_that_is_full_is_one_line_and_costs_nothing(small: list[str], tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(*small, "num_steps=12", f"output_dir={whole}")[0] == 0
    limited = "+callbacks.limit._target_=support.faults.SmallFiles"
    process = start_train(*small, "num_steps=12", limited, f"output_dir={run}", PYTHONPATH=TESTS, SMALL_FILES=1)
    printed, _ = process.communicate()
    assert process.returncode == 1, printed
    assert "Traceback" not in printed
    assert f"error: '{run}' can't be written to ([Errno 27]" in printed
    assert f"resume={run}" in printed
    assert train(f"resume={run}")[0] == 0
    assert_same_bits(run / "000", whole / "000")


def test_a_run_folder_that_is_deleted_is_one_line(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    deleted = ["+callbacks.fault._target_=support.faults.Deletion", f"+callbacks.fault.folder={run}"]
    code, printed = train(*small, "num_steps=20", *deleted, "+callbacks.fault.step=7", f"output_dir={run}")
    assert code == 1, printed
    assert "Traceback" not in printed
    assert f"error: '{run}' can't be written to" in printed


@pytest.mark.parametrize(
    ("named", "of_run"),
    [
        (lambda run: str(run / "a.ckpt"), True),
        (lambda run: os.fsencode(run / "events"), True),  # as TensorBoard's writer and os.scandir of bytes name it
        (lambda run: None, True),
        (lambda run: 5, True),  # an open file's number
        (lambda run: os.fsencode(run.parent / "other"), False),
    ],
    ids=["text", "bytes", "nothing", "number", "elsewhere"],
)
def test_an_error_of_the_disk_is_known_however_it_names_its_file(named, of_run: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert is_of_storage(OSError(errno.ENOSPC, "No space left on device", named(run)), run) is of_run


def test_a_full_disk_of_another_folder_than_the_first_one_composed_is_known(tmp_path: Path) -> None:
    # a process learns from the first where the run is
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "agreed" / "events"))
    line, code = failure(error, OmegaConf.create({"output_dir": str(tmp_path / "agreed")}), "process 1: ")
    assert code == 1 and f"'{tmp_path / 'agreed'}' can't be written to" in line


def test_a_command_to_copy_is_quoted_for_the_shell() -> None:
    line, _ = failure(KeyboardInterrupt(), OmegaConf.create({"output_dir": "my results"}), "")
    assert shlex.split(line.partition("resume with: ")[2])[-1] == "resume=my results"


@pytest.mark.parametrize("path", ["/last.ckpt", "/a/last.ckpt", "/a/b/last.ckpt"])
def test_a_checkpoint_outside_of_a_run_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda file: file.suffix == ".ckpt")
    with pytest.raises(InputError, match="a run's folder is expected"):
        run_folder(None, path, "inpaint", "now")
