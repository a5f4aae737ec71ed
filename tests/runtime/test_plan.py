"""The header of a plan, read without TensorRT."""

from __future__ import annotations

import pytest

from densenet_deploy.errors import ModelFileError
from densenet_deploy.runtime.engine_files import checked_header, numbers, same_version, sniff
from tests.runtime.plans import plan_bytes


def test_an_rtx_header_names_version_size_and_targets() -> None:
    data = plan_bytes()
    header = sniff(data)
    assert header is not None
    assert (header.flavour, header.version, header.size) == ("rtx", "1.7.1.116", len(data))
    assert header.targets == ("8.0", "8.6", "8.9", "12.0", "12.1", "newer")


def test_a_full_header_names_no_targets() -> None:
    header = sniff(plan_bytes(b"ftrt", (10, 3, 0, 26), mask=0xFF))
    assert header is not None
    assert (header.flavour, header.version, header.targets) == ("tensorrt", "10.3.0.26", ())


@pytest.mark.parametrize("data", [b"", b"vtrt", plan_bytes()[:35], b"PK\3\4" + bytes(60), plan_bytes(b"xtrt")])
def test_what_is_no_plan_has_no_header(data: bytes) -> None:
    assert sniff(data) is None
    with pytest.raises(ModelFileError) as caught:
        checked_header(data, "a.engine")
    assert caught.value.subject == "a.engine"


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0"])
def test_an_rtx_plan_of_another_length_is_refused(change) -> None:
    assert checked_header(plan_bytes(), "a.engine").size == len(plan_bytes())
    with pytest.raises(ModelFileError) as caught:
        checked_header(change(plan_bytes()), "a.engine")
    assert caught.value.subject == "a.engine"


@pytest.mark.parametrize(
    ("mask", "capability", "fits"),
    [
        (0x7E, "8.6", True),
        (0x7E, "12.1", True),
        (0x7E, "13.0", True),
        (0x3E, "13.0", False),
        (0x7E, "7.5", False),
        (0x7E, "9.0", False),  # Hopper lies between targets and is none
        (0x04, "8.6", True),
        (0x04, "8.9", False),
    ],
)
def test_targets(mask: int, capability: str, fits: bool) -> None:
    header = sniff(plan_bytes(mask=mask))
    assert header is not None
    assert header.supports(capability) is fits


def test_versions() -> None:
    assert same_version("10.3.0", "10.3.0.26")
    assert same_version("10.14.1.48", "10.14.1.48.post1")
    assert same_version("10.3.0.44", "10.3.0.300")  # the header keeps one byte a number
    assert not same_version("1.7.1.116", "1.7.2.116")
    assert numbers("soon") == ()
