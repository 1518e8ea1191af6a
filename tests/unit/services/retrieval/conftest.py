"""Settings that a test may parametrize."""

from typing import Any

import pytest

from services.settings import Settings


@pytest.fixture
def limits() -> dict[str, Any]:
    """Return settings that differ from the defaults."""
    return {}


@pytest.fixture
def settings(settings: Settings, limits: dict[str, Any]) -> Settings:
    return settings.model_copy(update=limits)
