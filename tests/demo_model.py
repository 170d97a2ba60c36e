"""The demo model, loaded once in a process and shared by tests, which must leave it as it is."""

from contextlib import contextmanager
from functools import cache

import mwork_lens as mw
from mwork_lens.neurons.space import Fingerprint

from .tiny import installed

load = mw.load_model


@cache
def demo_model():
    return load("demo", device="cpu")


@contextmanager
def sharing(monkeypatch):
    model = demo_model()
    monkeypatch.setattr(mw, "load_model", lambda source, **more: model if source == "demo" else load(source, **more))
    before = Fingerprint.of(model)
    yield
    assert Fingerprint.of(model) == before
    assert not installed(model)
