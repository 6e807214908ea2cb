"""Training tests export to ONNX only where they look at the file: it takes longer than the run."""

from __future__ import annotations

import pytest

from refold.training.run import finish


@pytest.fixture
def exporting() -> None:
    """Ask for every file that a run writes."""


@pytest.fixture(autouse=True)
def light(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "exporting" not in request.fixturenames:
        monkeypatch.setattr(finish, "_EXPORTED", ("deploy.safetensors",))
