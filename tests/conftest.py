import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a worker has one core

import pytest


@pytest.fixture
def unchecked():
    """As users run the package: no types are checked before its own code sees an argument."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
