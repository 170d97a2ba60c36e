import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

with suppress(ImportError):  # tests/gpu does without
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")  # what takes long on a busy one is right nevertheless

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a worker has one core
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported


@pytest.fixture(scope="session", autouse=True)
def _without_pictures():
    """Pictures, for each of which a browser starts, are drawn only in tests of pictures."""
    with suppress(ImportError):  # tests/gpu may do without
        from mwork_lens.report import pictures

        pictures._without_browser.append("most tests draw no pictures.")


@pytest.fixture
def unchecked():
    """As users run the package: no types are checked before its own code sees an argument."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def shared_demo(monkeypatch):
    """Within a test ``mw.load_model("demo")`` gives the model that all tests share."""
    from .demo_model import sharing

    with sharing(monkeypatch):
        yield


def pytest_collection_modifyitems(items):
    """Files that run the demo model first: they take longest, and at the end a worker would wait for the other."""
    long = {item.path for item in items if item.get_closest_marker("demo")}
    items.sort(key=lambda item: item.path not in long)
