"""The real onnxruntime-web, where it can be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from densenet_deploy.artifacts import cache_folder
from densenet_deploy.errors import BackendError, ResourceError
from densenet_deploy.serving.web.runtime_files import NAME, VERSION, runtime_files


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The folder that holds the pinned files; skips, with the reason, where npm cannot fetch them."""
    try:
        runtime_files()
    except (BackendError, ResourceError) as error:
        pytest.skip(str(error))
    return cache_folder(NAME, VERSION)
