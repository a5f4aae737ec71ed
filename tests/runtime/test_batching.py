"""Every batch finds a profile: the one tuned nearest, in portions where it is too large, filled up where too small."""

from __future__ import annotations

import pytest

from densenet_deploy.runtime.batching import BatchProfile, Portion, portions

WIDE = BatchProfile(1, 4, 8)
ONE = BatchProfile(1, 1, 1)
EIGHT = BatchProfile(8, 8, 8)
HIGH = BatchProfile(4, 16, 32)


@pytest.mark.parametrize(
    ("total", "profiles", "wanted"),
    [
        (1, (WIDE,), [Portion(0, 0, 1, 1)]),
        (8, (WIDE,), [Portion(0, 0, 8, 8)]),
        (19, (WIDE,), [Portion(0, 0, 8, 8), Portion(0, 8, 8, 8), Portion(0, 16, 3, 3)]),
        (3, (HIGH,), [Portion(0, 0, 3, 4)]),  # filled up to the smallest batch
        (33, (HIGH,), [Portion(0, 0, 32, 32), Portion(0, 32, 1, 4)]),
        (1, (WIDE, ONE), [Portion(1, 0, 1, 1)]),  # tuned for it
        (6, (WIDE, HIGH), [Portion(0, 0, 6, 6)]),
        (12, (WIDE, HIGH), [Portion(1, 0, 12, 12)]),
        (3, (ONE, EIGHT), [Portion(1, 0, 3, 8)]),  # between two profiles
        (10, (EIGHT, ONE), [Portion(0, 0, 8, 8), Portion(0, 8, 2, 8)]),
    ],
)
def test_a_batch_finds_its_profile(total: int, profiles: tuple[BatchProfile, ...], wanted: list[Portion]) -> None:
    assert list(portions(total, profiles)) == wanted


@pytest.mark.parametrize("profiles", [(WIDE,), (ONE, EIGHT), (HIGH, ONE), (WIDE, HIGH, ONE)])
def test_portions_cover_every_sample_once_and_stay_inside_profiles(profiles: tuple[BatchProfile, ...]) -> None:
    for total in range(1, 100):
        found = portions(total, profiles)
        assert [i for p in found for i in range(p.start, p.start + p.count)] == list(range(total))
        for portion in found:
            profile = profiles[portion.profile]
            assert profile.min <= portion.batch <= profile.max
            assert portion.count <= portion.batch
