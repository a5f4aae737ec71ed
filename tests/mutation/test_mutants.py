"""The changes that are made to a module, and those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation.__main__ import PACKAGE, equivalent, name_of, own_tests
from tests.mutation.mutants import mutants

MIRRORED = ("graph", "quantization", "parity", "runtime", "models", "sources", "variants")


def changes(source: str) -> set[str]:
    return {mutant.change for mutant in mutants(source.encode())}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"a < b -> (a <= b)", "a < b -> (a >= b)"}),
        ("a == b is c", {"a == b is c -> (a != b is c)", "a == b is c -> (a == b is not c)"}),
        ("a + b", {"a + b -> (a - b)"}),
        ("x = 7", {"7 -> 8"}),
        ("x = 0.5", {"0.5 -> 5.0"}),
        ("x = 0.0", {"0.0 -> 1.0"}),
        ("x = True", {"True -> False"}),
        ("x = 'Conv'", {"'Conv' -> 'Conv_'"}),
        ("x = -a", {"-a -> (a)"}),
        ("x = not a", {"not a -> (a)"}),
        ("x = a and b", {"a and b -> (a or b)", "a and b -> (a)", "a and b -> (b)"}),
        ("x = np.rint(a)", {"np.rint(a) -> (np.floor(a))"}),
        ("x = max(a)", {"max(a) -> (min(a))"}),
        ("x = abs(a)", {"abs(a) -> (a)"}),
        ("x = np.clip(a, b, c)", {"np.clip(a, b, c) -> (a)"}),
        ("x = a.copy()", {"a.copy() -> (a)"}),
        ("x = f(a, key=b)", {"f(a, key=b) -> (f(a))"}),
        ("x = [a for a in b if a]", {"a -> (not a)"}),
        ("x = a if b else c", {"b -> (not b)"}),
        ("if a:\n    x = b", {"a -> (not a)"}),
        ("x += y", {"x += y -> pass"}),
        ("os.fsync(x)", {"os.fsync(x) -> pass"}),
        ("raise ValueError('1')", {"raise ValueError('1') -> pass"}),
        ("def f():\n    return x", {"return x -> return None"}),
        ("for a in b:\n    continue", {"continue -> pass", "continue -> break"}),
        ("with lock:\n    x = a", {"with lock: -> if True:"}),
        ("with a, (\n    b\n):  # why: so\n    x = y", {"with a, ( b ): -> if True:"}),
    ],
)
def test_each_kind_of_change(source, expected):
    assert changes(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "'''Text 1.'''",
        "import a",
        "from a import b",
        "x = 'two words'",
        "x = f'{a + 1}'",
        "x: Literal['a', 'b']",
        "def f(x: int = y) -> 'Conv': ...",
        "@cache(1)\ndef f(): ...",
        "class A(B, total=False): ...",
        "x = cast('A', b)",
        "x = zip(a, b, strict=True)",
        "x = InvalidModelError('kind', 1)",
        "__all__ = ['a']",
        "if TYPE_CHECKING:\n    x = 1",
        "return_value = None",
    ],
)
def test_text_types_and_keywords_without_effect_are_left_alone(source):
    assert not changes(source)


def test_a_change_is_made_in_its_place():
    source = "é = 'ü'; a = 1\nb = 1\n".encode()
    first, second = (mutant for mutant in mutants(source) if mutant.before == "1")
    assert first.of(source).decode() == "é = 'ü'; a = 2\nb = 1\n"
    assert second.of(source).decode() == "é = 'ü'; a = 1\nb = 2\n"
    assert (first.line, second.line) == (1, 2)


def test_every_module_has_tests_of_its_own():
    modules = [*(PACKAGE / f"{name}.py" for name in ("artifacts", "manifest", "records"))]
    modules += [module for package in MIRRORED for module in (PACKAGE / package).rglob("*.py")]
    without = [name_of(module) for module in modules if mutants(module.read_bytes()) and not own_tests(module)]
    assert not without


def test_the_tests_of_a_module_with_a_longer_name_are_not_its_own():
    assert own_tests(PACKAGE / "runtime" / "image_damage.py") == ["tests/runtime/test_image_damage.py"]
    assert Path("tests/variants/test_variants.py").as_posix() in own_tests(PACKAGE / "variants" / "__init__.py")


def test_what_is_called_equivalent_is_a_change_of_a_module():
    for name, change in equivalent():
        module = PACKAGE / f"{name}.py"
        assert change in {mutant.change for mutant in mutants(module.read_bytes())}, f"{name}: {change}"
