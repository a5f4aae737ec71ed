"""The GPUs that the driver shows, and the options that only they have."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.runtime.nvidia import Gpu, NvidiaOptions, find_gpus
from tests.runtime.fake_driver import DRIVER, FakeDriver


class TestOptions:
    def test_nothing_special_is_asked_for_by_default(self) -> None:
        options = NvidiaOptions()
        assert (options.provider, options.streams, options.graphs, options.cache) == (None, 2, None, None)
        assert (options.allow_cpu_nodes, options.batches) == (False, None)

    @pytest.mark.parametrize("provider", ["cuda", "tensorrt", "rtx"])
    def test_a_provider_is_one_of_three(self, provider: str) -> None:
        assert NvidiaOptions(provider).provider == provider
        with pytest.raises(UnknownNameError) as caught:
            NvidiaOptions(f"{provider}2")
        assert (caught.value.subject, caught.value.why) == (f"{provider}2", "unknown provider")

    @pytest.mark.parametrize(("streams", "fits"), [(0, False), (1, True), (64, True), (65, False)])
    def test_there_are_1_to_64_streams(self, streams: int, fits: bool) -> None:
        if fits:
            assert NvidiaOptions(streams=streams).streams == streams
            return
        with pytest.raises(UsageError) as caught:
            NvidiaOptions(streams=streams)
        assert caught.value.subject == f"streams={streams}"

    @pytest.mark.parametrize("batches", [(1, 1, 1), (1, 2, 4), (4, 4, 8), (2, 8, 8)])
    def test_batches_are_in_order(self, batches: tuple[int, int, int]) -> None:
        assert NvidiaOptions(batches=batches).batches == batches

    @pytest.mark.parametrize("batches", [(0, 1, 1), (4, 2, 8), (1, 8, 4), (8, 4, 2)])
    def test_batches_out_of_order_are_refused(self, batches: tuple[int, int, int]) -> None:
        with pytest.raises(UsageError) as caught:
            NvidiaOptions(batches=batches)
        assert caught.value.subject == f"batches={batches}"

    def test_what_is_compiled_is_kept_in_the_users_cache_unless_a_folder_is_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert NvidiaOptions().cache_folder == tmp_path / "densenet-deploy" / "gpu"
        assert NvidiaOptions(cache=tmp_path / "mine").cache_folder == tmp_path / "mine"


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, FakeDriver]]:
    """The libraries that this machine has; without an entry loading one fails."""
    found: dict[str, FakeDriver] = {}

    def load(name: str) -> FakeDriver:
        if name not in found:
            raise OSError(f"{name}: cannot open shared object file")
        return found[name]

    monkeypatch.setattr(ctypes, "CDLL", load)
    find_gpus.cache_clear()
    yield found
    find_gpus.cache_clear()


class TestGpus:
    def test_the_driver_names_them(self, libraries: dict[str, FakeDriver]) -> None:
        libraries[DRIVER] = FakeDriver()
        first, second = find_gpus()
        assert first == Gpu(0, "First GPU", "8.6")
        assert (second.index, second.compute_capability) == (1, "12.1")
        assert second.name == "Second \ufffd" + "x" * 247, "255 bytes"

    @pytest.mark.parametrize("driver", [None, FakeDriver(init=100), FakeDriver(init=-1), FakeDriver(count_status=3)])
    def test_without_a_driver_that_answers_there_are_none(
        self, libraries: dict[str, FakeDriver], driver: FakeDriver | None
    ) -> None:
        if driver is not None:
            libraries[DRIVER] = driver
        assert find_gpus() == ()

    def test_the_driver_is_asked_once(self, libraries: dict[str, FakeDriver]) -> None:
        libraries[DRIVER] = FakeDriver()
        assert find_gpus() is find_gpus()
