from __future__ import annotations

import math
from pathlib import Path

import pytest

from device_models.errors import InputError
from device_models.strict_yaml import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3.", -3.0),
        ("-.inf", -math.inf),
        ("10", 10),
        ("010", 10),
        ("-089", -89),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("off", "off"),
        ("y", "y"),
        ("12:30:00", "12:30:00"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("5 ms", "5 ms"),
        ("'1e-4'", "1e-4"),
        ("~", None),
        ("null", None),
        ("", None),
        ("nullable", "nullable"),
    ],
)
def test_scalar_is_read_as_typed(text: str, expected: object) -> None:
    value = parse_yaml(f"a: {text}", "file")["a"]
    assert value == expected
    assert type(value) is type(expected)


def test_nan_is_a_float() -> None:
    assert math.isnan(parse_yaml("a: .nan", "file")["a"])


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: 1\nb: 2\na: 3", "line 3"),
        ("a:\n  b: 1\n  b: 1", "line 3"),
        ("a: {b: 1, b: 2}", "line 1"),
        ("1: x\n1: y", "line 2"),
    ],
)
def test_duplicate_key_is_refused_with_its_line(text: str, where: str) -> None:
    with pytest.raises(InputError, match="stands twice") as caught:
        parse_yaml(text, "file.yaml")
    assert f"file.yaml, {where}" in str(caught.value)


def test_same_key_in_two_sections_is_fine() -> None:
    assert parse_yaml("a: {x: 1}\nb: {x: 2}", "file") == {"a": {"x": 1}, "b": {"x": 2}}


def test_equal_texts_are_trees_of_their_own() -> None:
    first = parse_yaml("a: {x: [1]}", "file")
    first["a"]["x"].append(2)
    assert parse_yaml("a: {x: [1]}", "file") == {"a": {"x": [1]}}


def test_error_names_the_file_at_hand() -> None:
    for where in ("one.yaml", "other.yaml", "one.yaml"):
        with pytest.raises(InputError, match=f"^{where}, line 1: not valid YAML"):
            parse_yaml("a: [", where)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: *unknown",
        "&a {b: *a}",
        "a: \x01",
        "a: 1\n---\nb: 1",
        "? [a, b]\n: 1",
        "? {a: 1}\n: 1",
        "a: !!float x",
        "a: !!int x",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!python/object/apply:os.getcwd []",
        "[" * 3000,
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_broken_yaml_is_an_input_error_on_one_line(text: str) -> None:
    with pytest.raises(InputError, match="not valid YAML") as caught:
        parse_yaml(text, "file.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("file.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("title: Jülich".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_yaml(latin)
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path)


def test_empty_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert read_yaml(path) is None
