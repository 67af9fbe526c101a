"""Text files, made up here, as passages."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_models.errors import InputError
from fllm.data.corpus import Task, note_text
from fllm.data.passages import PASSAGE, passages, read_texts

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def written(folder: Path, **texts: str) -> list[Path]:
    paths = []
    for name, text in texts.items():
        paths.append(folder / f"{name}.txt")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def test_paragraphs_are_joined_and_parted_at_blank_lines_alone() -> None:
    assert passages("one\n\ntwo\n \t\nthree\nfour", 9) == ["one\n\ntwo", "three", "four"]
    assert passages("one\r\n\r\n\r\ntwo", 9) == ["one\n\ntwo"]
    assert passages("one\n\ntwo\n\nthree", 7) == ["one", "two", "three"]
    assert passages("  \n\n \n") == []


def test_longer_paragraphs_are_cut_at_white_space_where_they_have_any() -> None:
    assert passages("aaa bbb ccc", 7) == ["aaa bbb", "ccc"]
    assert passages("aaa bbbb", 7) == ["aaa", "bbbb"]
    assert passages("abcdefghij", 4) == ["abcd", "efgh", "ij"]


@given(st.text(alphabet="ab \n\t\u00e9", max_size=120), st.integers(1, 30))
def test_nothing_but_white_space_is_lost(text: str, longest: int) -> None:
    found = passages(text, longest)
    assert all(0 < len(passage) <= longest and passage == passage.strip() for passage in found)
    assert "".join("".join(found).split()) == "".join(text.split())
    if all(len(word) <= longest for word in text.split()):
        assert " ".join(found).split() == text.split()


def test_files_are_groups(tmp_path: Path) -> None:
    paths = written(tmp_path, b="first\n\nsecond", a="x" * PASSAGE + "\n\nlast")
    corpus = read_texts(paths)
    assert corpus.task == Task("language") and not corpus.synthetic
    assert [example.group for example in corpus.examples] == ["a", "a", "b"]
    assert [example.key for example in corpus.examples] == [1, 2, 3]
    assert {(example.label, example.part) for example in corpus.examples} == {(None, None)}
    assert note_text(corpus.examples[2].sections, corpus.task) == "first\n\nsecond"
    assert corpus.sha256 == hashlib.sha256(paths[1].read_bytes() + paths[0].read_bytes()).hexdigest()
    assert corpus == read_texts(paths[::-1])
    assert corpus.source == tmp_path.name
    assert read_texts(paths[:1]).source == "b.txt"


def test_folders_and_gzip(tmp_path: Path) -> None:
    written(tmp_path, one="1", README="about", two="2")
    (tmp_path / "three.md.gz").write_bytes(gzip.compress(b"3"))
    (tmp_path / "table.csv").write_text("text\n4\n")
    (tmp_path / "folder.txt").mkdir()
    assert read_texts([tmp_path]).groups == ("one", "three", "two")


def test_files_called_train_and_test_are_parts(tmp_path: Path) -> None:
    corpus = read_texts(written(tmp_path, train="a", valid="b", test="c"))
    assert [example.part for example in corpus.examples] == ["test", "train", "validation"]
    assert corpus.groups == ()
    assert read_texts(written(tmp_path, valid="b", test="c")).groups == ("test", "valid")


def test_repeated_passages_are_counted(tmp_path: Path) -> None:
    corpus = read_texts(written(tmp_path, a="same words", b="Same words", c="others"))
    assert corpus.warnings == ("texts that repeat another: 1 of 3; they may stand in training and test alike",)


def test_errors_show_no_text(tmp_path: Path) -> None:
    secret = written(tmp_path, notes="zebrafish fin")[0]
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"zebrafish \xff")
    other, empty = tmp_path / "other", tmp_path / "empty"
    other.mkdir()
    empty.mkdir()
    cases: list[tuple[list[Path], str]] = [
        ([], "no text files"),
        ([empty], "empty: no text files"),
        ([tmp_path / "none.txt"], "does not exist"),
        ([tmp_path / "table.csv"], "unknown kind of text file"),
        ([broken], "no UTF-8"),
        ([secret, *written(other, notes="x")], "2 files are called"),
    ]
    for paths, told in cases:
        with pytest.raises(InputError, match=told) as error:
            read_texts(paths)
        assert "zebrafish" not in str(error.value)
    assert "zebrafish" not in repr(read_texts([secret]))


def test_wikitext() -> None:
    path = SHARED / "wikitext2" / "test.txt.gz"
    if not path.is_file():
        pytest.skip("wikitext2 does not lie beside the repository")
    corpus = read_texts([path])
    assert corpus.groups == ("test",)
    sizes = [len(example.sections[0][1]) for example in corpus.examples]
    assert max(sizes) <= PASSAGE and sum(sizes) / len(sizes) > PASSAGE / 2
    with gzip.open(path, "rt", encoding="utf-8") as file:
        words = len(file.read().split())
    assert sum(len(example.sections[0][1].split()) for example in corpus.examples) == words
