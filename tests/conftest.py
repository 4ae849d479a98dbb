"""What has to be so before torch is imported, and who imports it."""

import gc
import os

import pytest

# On a CPU sums are rounded by the number of threads, and the processes that Lightning starts have fewer than this one:
# results are held to the same bits, so all have one. Before torch is imported, and for all processes of the tests.
os.environ["OMP_NUM_THREADS"] = "1"
# For the same reason no test sees a GPU unless it is told of one: RLSD_TEST_GPUS=0 pytest
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("RLSD_TEST_GPUS", "")

gc.disable()  # a million objects that imports make and that stay: looking through them for garbage takes seconds


def pytest_configure(config: pytest.Config) -> None:
    """The controller of ``pytest -n`` runs no test: its workers start before anything is imported."""
    if not config.getoption("numprocesses", None) or "PYTEST_XDIST_WORKER" in os.environ:
        config.pluginmanager.import_plugin("support.fixtures")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()
