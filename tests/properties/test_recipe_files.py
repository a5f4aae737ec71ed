"""A recipe file of any keys and values gives options, or an error that names the key and the nearest known one."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import strategies as st

from densenet_deploy.errors import InputError, UnknownNameError, UsageError
from densenet_deploy.workflows.quantize.options import QuantizeOptions, load_recipe
from tests.properties.holds import holds_for

KEYS = ["base", *(field.name.replace("_", "-") for field in fields(QuantizeOptions) if field.name != "recipe")]
TYPOS = st.sampled_from(KEYS).flatmap(
    lambda key: st.sampled_from([key[:-1], key + "s", key.replace("-", "_"), key.upper()])
)
VALUES = st.one_of(
    st.sampled_from(
        ['"onnxruntime"', '"openvino"', '"mse"', '"per-tensor"', "0.5", "true", "512", '["features.conv0"]']
    ),
    st.sampled_from(
        ["nan", "inf", "-1", "1e999", "9" * 30, "[]", "[1]", "{}", "{a = 1}", "1979-05-27", "07:32:00", "0x1F"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=10).map(json.dumps),
)
ANY_KEYS = st.text(st.characters(codec="utf-8"), max_size=10)
LINES = st.tuples(st.sampled_from(KEYS) | st.sampled_from(KEYS) | TYPOS | ANY_KEYS, VALUES)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "mine.toml"


@holds_for(few=100, many=1_000, lines=st.lists(LINES, max_size=4, unique_by=lambda line: line[0]))
def test_a_recipe_is_read_or_its_fault_named(path: Path, lines: list[tuple[str, str]]) -> None:
    lines = [("base", '"onnxruntime"'), *(line for line in lines if line[0] != "base" or len(lines) > 2)]
    path.write_text("".join(f"{json.dumps(key)} = {value}\n" for key, value in lines), encoding="utf-8")
    try:
        options = load_recipe(path, {})
    except UsageError as exc:
        assert str(exc).isprintable()
        _assert_named(exc, lines)
    else:
        assert {key for key, _ in lines} <= set(KEYS)
        assert isinstance(options, QuantizeOptions)


def _assert_named(exc: UsageError, lines: list[tuple[str, str]]) -> None:
    unknown = [key for key, _ in lines if key not in KEYS]
    if isinstance(exc, UnknownNameError) and "key in" in exc.why:
        assert exc.args[0] in unknown
        assert any(known in exc.fix for known in KEYS)
        return
    assert any(key in str(exc) or key in str(exc).replace("_", "-") or "TOML" in str(exc) for key, _ in lines), exc


@holds_for(few=100, many=250, data=st.binary(max_size=60))
def test_any_bytes_are_a_recipe_or_an_error(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises((UsageError, InputError)) as caught:  # without a base there is no recipe
        load_recipe(path, {})
    assert str(caught.value).isprintable()


@holds_for(few=len(KEYS) * 4, many=50, typo=TYPOS)
def test_a_misspelt_key_names_the_one_that_was_meant(path: Path, typo: str) -> None:
    if typo in KEYS:
        return
    path.write_text(f'base = "onnxruntime"\n{typo} = 1\n')
    with pytest.raises(UnknownNameError) as caught:
        load_recipe(path, {})
    assert typo in str(caught.value)
    assert typo.isupper() or "did you mean" in caught.value.fix
