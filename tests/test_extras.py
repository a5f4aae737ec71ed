"""Every extra resolves on a Jetson from wheels alone, but for those that docs/how-to/serving.md names."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.extras import ROOT, compiled, require_index, resolved

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TABLE = dict(re.findall(r"^\| `([\w-]+)` \| (yes|no)\b", (ROOT / "docs" / "how-to" / "serving.md").read_text(), re.M))
"""Extra → whether the documentation says that it installs on a Jetson."""

pytestmark = pytest.mark.timeout(300)


def test_the_documentation_has_every_extra() -> None:
    assert TABLE.keys() == EXTRAS.keys()
    assert {name for name, installs in TABLE.items() if installs == "no"} == {"tensorrt", "tensorrt-rtx"}


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_resolves_on_a_jetson_if_the_documentation_says_so(extra, python) -> None:
    require_index()
    if TABLE[extra] == "yes":
        found = resolved([extra], python)
        names = {re.split(r"[<>=;\[ ]", requirement)[0] for requirement in EXTRAS[extra]}
        assert names | {"numpy", "pillow", "typer"} <= found.keys()
    else:
        assert "Wheels are required for `tensorrt" in compiled([extra], python).stderr
