from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from projections.base import ReadModels
from projections.models import MODELS
from tests.projections.story import Story


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(tmp_path / "events.db")
    yield told
    told.close()


@pytest.fixture
def models(tmp_path: Path) -> Iterator[ReadModels]:
    opened = ReadModels(tmp_path / "read-models", MODELS)
    yield opened
    opened.close()
