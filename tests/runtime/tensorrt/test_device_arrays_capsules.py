"""DLPack capsules are opened and made as NumPy and PyTorch do it, and give back what they hold."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from densenet_deploy.runtime.tensorrt.device_arrays import SharedArray, make_capsule, open_capsule

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
PLAIN: dict[str, Any] = {}
VERSIONED = {"max_version": (1, 0)}

# Where a versioned capsule has what: https://dmlc.github.io/dlpack/latest/c_api.html, on a machine of 64 bits
MAJOR, DELETER, FLAGS, DATA, CODE, BITS, LANES, OFFSET = (
    (0, "I"),
    (16, "Q"),
    (24, "Q"),
    (32, "Q"),
    *(
        (52, "B"),
        (53, "B"),
        (54, "H"),
        (72, "Q"),
    ),
)


class Lent:
    """A NumPy array in a capsule of ours."""

    def __init__(self, array: np.ndarray, *, versioned: bool) -> None:
        self.array, self.versioned = array, versioned

    def __dlpack__(self, **_how: Any) -> object:
        place, owner = self.array.ctypes.data, self.array
        return make_capsule(place, owner.shape, owner.dtype, (1, 0), owner, versioned=self.versioned)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def contents(capsule: object) -> ctypes.Array:
    """The bytes that an unopened versioned capsule points to."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return (ctypes.c_char * 80).from_address(pointer(capsule, b"dltensor_versioned"))


def altered(array: np.ndarray, *changes: tuple[tuple[int, str], int]) -> object:
    """A capsule of ours with other values in some places."""
    capsule = Lent(array, versioned=True).__dlpack__()
    for (offset, kind), value in changes:
        struct.pack_into(f"={kind}", contents(capsule), offset, value)
    return capsule


class TestOpening:
    @pytest.mark.parametrize("how", [PLAIN, VERSIONED], ids=["plain", "versioned"])
    @pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "i1", "u1", "i8", "?", "c8"])
    def test_numpys_are_opened_in_place(self, how: dict[str, Any], dtype: str) -> None:
        array = ARRAY.astype(dtype)
        found = open_capsule(array.__dlpack__(**how))
        assert found == SharedArray(array.ctypes.data, (2, 3, 4), array.dtype, None, False, (1, 0))

    @pytest.mark.parametrize("how", [PLAIN, VERSIONED], ids=["plain", "versioned"])
    def test_an_array_lives_as_long_as_somebody_looks(self, how: dict[str, Any]) -> None:
        array = ARRAY.copy()
        before = sys.getrefcount(array)
        found = open_capsule(array.__dlpack__(**how))
        assert sys.getrefcount(array) == before + 1
        del found
        assert sys.getrefcount(array) == before

    @pytest.mark.parametrize(
        ("array", "strides"),
        [
            (ARRAY.transpose(2, 0, 1), (4, 48, 16)),
            (ARRAY.reshape(2, 4, 3).transpose(0, 2, 1), (48, 4, 12)),  # the first axis is packed, an inner one is not
            (ARRAY[:, 1:, ::2], (48, 16, 8)),
            (ARRAY[:, :1], (48, 16, 4)),
            (ARRAY[:1], None),
            (ARRAY[:, 0, 0], (48,)),
            (np.ones((3, 1, 2), np.float32), None),
            (np.array(3.0, np.float32), None),
        ],
        ids=str,
    )
    def test_layouts_that_are_not_packed_keep_their_strides_in_bytes(
        self, array: np.ndarray, strides: tuple[int, ...] | None
    ) -> None:
        found = open_capsule(array.__dlpack__())
        assert (found.strides, found.shape) == (strides, array.shape)
        assert found.address == array.ctypes.data

    def test_the_stride_of_an_axis_of_one_element_does_not_matter(self) -> None:
        torch = pytest.importorskip("torch")
        tensor = torch.zeros(24).as_strided((3, 1, 4), (4, 77, 1))
        assert open_capsule(tensor.__dlpack__()).strides is None

    def test_read_only_memory_says_so(self) -> None:
        frozen = ARRAY.copy()
        frozen.flags.writeable = False
        assert open_capsule(frozen.__dlpack__(**VERSIONED)).read_only
        assert open_capsule(altered(ARRAY, (FLAGS, 1))).read_only
        assert not open_capsule(altered(ARRAY, (FLAGS, 2))).read_only, "that it was copied is another flag"

    def test_a_capsule_is_opened_once(self) -> None:
        for capsule in (ARRAY.__dlpack__(), ARRAY.__dlpack__(**VERSIONED)):
            found = open_capsule(capsule)
            with pytest.raises(TypeError):
                open_capsule(capsule)
            assert found.shape == ARRAY.shape
        with pytest.raises(TypeError):
            open_capsule(object())

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ((MAJOR, 2), BufferError),
            ((CODE, 4), TypeError),
            ((BITS, 4), TypeError),
            ((BITS, 12), TypeError),
            ((LANES, 2), TypeError),
        ],
        ids=["another version", "bfloat16", "half a byte", "one and a half", "vectors"],
    )
    def test_what_numpy_lacks_is_refused_and_given_back(
        self, change: tuple[tuple[int, str], int], error: type[Exception]
    ) -> None:
        array = ARRAY.astype("i1")
        before = sys.getrefcount(array)
        capsule = altered(array, change)
        with pytest.raises(error) as caught:
            open_capsule(capsule)
        assert ("code 4, 8 bits" in str(caught.value)) is (change[0] == CODE)
        del caught
        assert sys.getrefcount(array) == before

    def test_the_first_element_is_where_data_and_offset_say(self) -> None:
        place = ARRAY.ctypes.data
        assert open_capsule(altered(ARRAY, (OFFSET, 16))).address == place + 16
        assert open_capsule(altered(ARRAY[:0], (DATA, 0))).address == 0
        assert open_capsule(altered(ARRAY[:0], (DATA, 0), (OFFSET, 16))).address == 16

    def test_an_array_that_needs_no_release_is_not_released(self) -> None:
        assert open_capsule(altered(ARRAY, (DELETER, 0))).shape == ARRAY.shape


class TestMaking:
    @pytest.mark.parametrize("dtype", ["f4", "f2", "i1", "u1", "i8", "?", "c8"])
    @pytest.mark.parametrize("versioned", [False, True])
    def test_numpy_opens_ours_in_place_and_gives_it_back(self, dtype: str, versioned: bool) -> None:
        array = ARRAY.astype(dtype)
        before = sys.getrefcount(array)
        opened = np.from_dlpack(Lent(array, versioned=versioned))
        assert (opened.ctypes.data, opened.dtype) == (array.ctypes.data, array.dtype)
        np.testing.assert_array_equal(opened, array)
        assert opened.flags.writeable is versioned, "NumPy cannot know without a version"
        del opened
        assert sys.getrefcount(array) == before

    def test_torch_opens_ours_in_place_and_gives_it_back(self) -> None:
        torch = pytest.importorskip("torch")
        array = ARRAY.copy()
        before = sys.getrefcount(array)
        opened = torch.from_dlpack(Lent(array, versioned=False))
        assert opened.data_ptr() == array.ctypes.data
        np.testing.assert_array_equal(opened.numpy(), array)
        del opened
        assert sys.getrefcount(array) == before

    def test_they_are_of_version_1_0(self) -> None:
        capsule = Lent(ARRAY, versioned=True).__dlpack__()
        assert struct.unpack_from("=II", contents(capsule)) == (1, 0)

    @pytest.mark.parametrize("versioned", [False, True])
    def test_they_name_the_device(self, versioned: bool) -> None:
        capsule = make_capsule(256, (2,), np.dtype("f4"), (2, 3), None, versioned=versioned)
        assert open_capsule(capsule).device == (2, 3)

    @pytest.mark.parametrize("versioned", [False, True])
    def test_one_that_nobody_opens_lets_go(self, versioned: bool) -> None:
        array = ARRAY.copy()
        before = sys.getrefcount(array)
        capsule = Lent(array, versioned=versioned).__dlpack__()
        assert sys.getrefcount(array) == before + 1
        del capsule
        assert sys.getrefcount(array) == before


def test_at_the_end_of_the_process_nothing_is_given_back() -> None:
    """The library that it belongs to may be gone by then."""
    script = """
import sys, weakref
import numpy as np
from densenet_deploy.runtime.tensorrt.device_arrays import make_capsule, open_capsule
class Owner: pass
def shared(name):
    owner = Owner()
    weakref.finalize(owner, print, name).atexit = False
    return open_capsule(make_capsule(256, (1,), np.dtype("f4"), (2, 0), owner, versioned=True))
shared("early")
sys.kept = shared("late")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "early\n"
