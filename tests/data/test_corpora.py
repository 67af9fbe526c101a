"""Tables of texts, made up here, and public ones where they lie beside the repository."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_models.errors import InputError
from fllm.data.corpora import TableColumns, part_of, read_table
from fllm.data.corpus import Corpus, Task, answer_text, note_text
from fllm.data.table_files import suffix_of

SECRET = "zebrafish"
"""Stands in every cell of the broken tables; no message may repeat it."""

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"

ROWS = [("a cough", "lung"), ("a stone", "kidney"), ("more cough", "lung"), ("flank pain", "kidney")]


def csv_text(rows: Sequence[Sequence[str]], *, delimiter: str = ",") -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    return stream.getvalue()


def written(folder: Path, content: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def table(folder: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("text", "label")) -> Path:
    return written(folder, csv_text([header, *rows]))


def texts(corpus: Corpus) -> list[str]:
    return [note_text(example.sections, Task("language")) for example in corpus.examples]


def refused(path: Path, columns: TableColumns | None = None) -> str:
    with pytest.raises(InputError) as error:
        read_table(path, columns)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading


def test_rows_become_examples(tmp_path: Path) -> None:
    path = table(tmp_path, ROWS)
    corpus = read_table(path)
    assert corpus.task == Task("classification", ("kidney", "lung"), "label:")
    assert [example.label for example in corpus.examples] == [1, 0, 1, 0]
    assert corpus.examples[0].sections == (("text", "a cough"),)
    assert note_text(corpus.examples[0].sections, corpus.task) == "text: a cough\nlabel:"
    assert [example.key for example in corpus.examples] == [1, 2, 3, 4]
    assert (corpus.synthetic, corpus.source) == (False, "table.csv")
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert corpus.groups == () and corpus.examples[0].part is None
    assert answer_text("lung") == " lung"


@pytest.mark.parametrize("name", ["t.csv", "t.CSV.gz", "t.tsv", "t.tsv.gz", "t.jsonl", "t.ndjson.gz"])
def test_every_kind_of_table_reads_alike(tmp_path: Path, name: str) -> None:
    rows = [('two\nlines, "quoted"\tand more', "x y"), ("\u00e4\u2028\u6f22", "z"), ("plain", "z"), ("last", "x y")]
    if "json" in name:
        content = "\n\n".join(json.dumps({"extra": [1], "label": b, "text": a}) for a, b in rows) + "\n"
    else:
        content = csv_text([("text", "label"), *rows], delimiter="\t" if "tsv" in name else ",")
    corpus = read_table(written(tmp_path, content, name))
    assert texts(corpus) == [f"text: {a}" for a, _ in rows]
    assert [corpus.task.classes[example.label or 0] for example in corpus.examples] == [b for _, b in rows]


def test_gzip_is_known_by_content_and_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    plain = ("\ufeff" + csv_text([("text", "label"), *ROWS])).encode()
    for name, content in (("zipped.csv", gzip.compress(plain)), ("plain.csv", plain)):
        (tmp_path / name).write_bytes(content)
        assert len(read_table(tmp_path / name).examples) == 4
    (tmp_path / "no.csv.gz").write_bytes(plain)
    assert len(read_table(tmp_path / "no.csv.gz").examples) == 4
    assert suffix_of(Path("Notes.CSV.GZ")) == ".csv"


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t,\"'"), max_size=30)


@given(st.lists(CELLS, min_size=4, max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives(tmp_path: Path, cells: list[str]) -> None:
    rows = [(cell, "ab"[i % 2]) for i, cell in enumerate(cells)]
    lines = [json.dumps({"text": cell, "label": label}, ensure_ascii=False) for cell, label in rows]
    kept = [cell.strip() for cell in cells if cell.strip()]
    for name, content in (("t.csv", csv_text([("text", "label"), *rows])), ("t.jsonl", "\n".join(lines))):
        path = written(tmp_path, content, name)
        if not kept:
            assert "no row has any text" in refused(path)
        elif len(kept) >= 4:
            corpus = read_table(path)
            assert [example.sections[0][1] for example in corpus.examples] == kept


def test_fields_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    corpus = read_table(table(tmp_path, [("x" * 200_000, "a"), ("y", "b"), ("z", "a"), ("w", "b")]))
    assert len(corpus.examples[0].sections[0][1]) == 200_000
    assert csv.field_size_limit() == before


def test_several_text_columns_become_named_sections(tmp_path: Path) -> None:
    path = table(
        tmp_path, [("n1", "d1", "a"), ("", "d2", "b"), ("n3", " ", "a"), ("n4", "d4", "b")], ["note", "talk", "y"]
    )
    corpus = read_table(path, TableColumns("note, talk", "y"))
    assert corpus.examples[0].sections == (("note", "n1"), ("talk", "d1"))
    assert [len(example.sections) for example in corpus.examples] == [2, 1, 1, 2]


def test_clients_and_parts(tmp_path: Path) -> None:
    parts = ["Train", "dev", "TEST2", "training"]
    rows = [(*row, f"site {i % 2}", part) for i, (row, part) in enumerate(zip(ROWS, parts, strict=True))]
    path = table(tmp_path, rows, ("text", "label", "where", "split"))
    corpus = read_table(path, TableColumns(client="where", part="split"))
    assert corpus.groups == ("site 0", "site 1")
    assert [example.part for example in corpus.examples] == ["train", "validation", "test", "train"]
    assert [part_of(name) for name in ("valid", "Validation 1", "val", "testing", "retest", "")] == [
        "validation", "validation", "validation", "test", None, None,
    ]  # fmt: skip


def test_json_values_other_than_text(tmp_path: Path) -> None:
    values = [(1, 0), (2.5, 1), (True, 0), ("x", 1), (None, 0), (float("nan"), 1)]
    content = "\n".join(json.dumps({"text": text, "label": label}) for text, label in values)
    corpus = read_table(written(tmp_path, content, "t.jsonl"))
    assert texts(corpus) == ["text: 1", "text: 2.5", "text: true", "text: x"]
    assert corpus.task.classes == ("0", "1")
    assert "rows without text, left out: 2" in corpus.warnings


def test_language_modelling_needs_no_label(tmp_path: Path) -> None:
    corpus = read_table(table(tmp_path, [("one",), ("two",)], ("text",)), language=True)
    assert corpus.task == Task("language")
    assert [example.label for example in corpus.examples] == [None, None]
    assert texts(corpus) == ["one", "two"]


# Warnings


def test_warnings_count_what_a_reader_must_know(tmp_path: Path) -> None:
    rows = [
        ("Same  text", "a", "train"),
        ("same text", "b", "test"),
        ("", "a", "train"),
        ("p", "a", "dev"),
        ("other", "A", "train"),
    ]
    found = read_table(
        table(tmp_path, [*rows, *[("o", "a", "train")] * 2, ("", "lost", "")], ("text", "label", "s")),
        TableColumns(part="s"),
    )
    assert found.warnings == (
        "rows without text, left out: 2",
        "classes with fewer than 10 texts: 3 of 3; their recall says little",
        "names of classes that differ from another by capital letters alone: 1",
        "texts that repeat another: 2 of 6",
        "texts of the test part that also stand in the training part: 1",
        "texts that stand under more than one class: 1",
    )
    assert [example.key for example in found.examples] == [1, 2, 4, 5, 6, 7]


def test_repeated_texts_may_leak_where_no_part_is_given(tmp_path: Path) -> None:
    rows = [(f"text {i // 2}", "ab"[i // 2 % 2]) for i in range(40)]
    assert read_table(table(tmp_path, rows)).warnings == (
        "texts that repeat another: 20 of 40; they may stand in training and test alike",
    )


def test_clean_tables_have_no_warnings(tmp_path: Path) -> None:
    assert read_table(table(tmp_path, [(f"text {i}", "ab"[i % 2]) for i in range(20)])).warnings == ()


# Errors; each message is checked against the secret by `refused`

S = SECRET


def test_wrong_files(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "folder" in refused(tmp_path / "folder.csv")
    assert "kind of table" in refused(written(tmp_path, S, "t.xlsx"))
    assert "empty" in refused(written(tmp_path, " \n", "t.csv"))
    assert "no UTF-8" in refused(written(tmp_path, f"text,label\n{S}\u00e9,a\n".encode("latin-1")))
    assert "UTF-16" in refused(written(tmp_path, f"text,label\n{S},a\n".encode("utf-16-le")))
    whole = gzip.compress(f"text,label\n{S},a\n".encode())
    for broken in (whole[:-9], whole[:12] + b"\0\0\0" + whole[15:]):
        assert "broken gzip" in refused(written(tmp_path, broken))
    with zipfile.ZipFile(tmp_path / "z.csv", "w") as archive:
        archive.writestr("t.csv", S)
    assert "ZIP" in refused(tmp_path / "z.csv")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path, ROWS)

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "Permission denied" in refused(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f"text,label\n{S},a\n{S}\n", "row 2: malformed table; expected 2 fields; received 1"),
        (f"text,label\n{S},a,{S}\n", "row 1: malformed table"),
        (f'text,label\n"{S},a\n', "line 2: malformed table"),
        (f'text,label\n"{S}"{S},a\n', "line 2: malformed table"),
        ("text,label\n", "no rows"),
        (f"text,label,text\n{S},a,{S}\n", "column 'text' stands twice"),
        (f"text;label\n{S};a\n", "parted by semicolons?"),
        (f"text\tlabel\n{S}\ta\n", "parted by tabs?"),
        (f"text,y,Any Name\n{S},a,{S}\n", "'label' missing; expected 'text' and 'label'; columns: text, y, Any Name"),
        (f"note,Diagnosis,{S}\nx,y,z\n", "expected 'text' and 'label'; columns: note, Diagnosis and 1 more"),
        (f"{S},{S} pain,8\n{S},b,9\n", "the first line must hold their names"),
        (f"{S}\n{S}\n", "the first line must hold their names"),
        (f"txt,{S}\n{S},a\n", "columns: txt and 1 more"),
    ],
)  # fmt: skip
def test_malformed_tables(tmp_path: Path, content: str, told: str) -> None:
    assert told in refused(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f'{{"text": "{S}", "label": "a"}}\n\n{{"text": "{S}"', "line 3: malformed JSON"),
        (f'["{S}"]', "line 1: malformed content; expected a JSON object; received 'list'"),
        ("[" * 100_000, "malformed JSON"),
        (f'{{"text": "{S}"}}', "line 1: column 'label' missing; expected 'text' and 'label'; columns: text"),
        (f'{{"text": {{"{S}": "{S}"}}, "label": "a"}}', "line 1: column 'text' holds a nested value"),
        (f'{{"text": ["{S}"], "label": "a"}}', "received 'list'"),
        (f'{{"text": "{S}\\ud800", "label": "a"}}', "no valid text"),
    ],
)
def test_malformed_json_lines(tmp_path: Path, content: str, told: str) -> None:
    assert told in refused(written(tmp_path, content, "t.jsonl"))


def test_values_that_cannot_be_what_the_column_should_hold(tmp_path: Path) -> None:
    columns = TableColumns(client="c", part="p")
    good = [(S, label, "site", "train") for label in "abab"]

    def with_row(*row: str) -> str:
        return refused(table(tmp_path, [*good, row], ("text", "label", "c", "p")), columns)

    assert "row 5: column 'label' is empty in 1 of 5 rows" in with_row(S, " ", "site", "train")
    assert "row 5: column 'c' is empty" in with_row(S, "a", "", "train")
    assert "row 5: column 'p' is empty" in with_row(S, "a", "site", "")
    assert "row 5: column 'p' names no part" in with_row(S, "a", "site", f"train {S}")
    assert "more than 80 characters" in with_row(S, S * 10, "site", "train")


def test_columns_that_hold_no_classes_or_clients(tmp_path: Path) -> None:
    assert "2 to 100 classes; received 1" in refused(table(tmp_path, [(S, "a")] * 3))
    assert "received 101" in refused(table(tmp_path, [(S, f"{S} {i % 101}") for i in range(400)]))
    doubtful = refused(table(tmp_path, [(f"{S} {i}", f"{S} {i}") for i in range(5)]))
    assert "5 different values in the label column for 5 texts" in doubtful
    rows = [(S, "ab"[i % 2], f"{S} {i}") for i in range(6)]
    told = refused(table(tmp_path, rows, ("text", "label", "c")), TableColumns(client="c"))
    assert "is this the client column?" in told
    assert "no row has any text" in refused(table(tmp_path, [("", "a"), (" ", "b")]))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (TableColumns(text="text,label"), "which the model must not see"),
        (TableColumns(text="text,,note"), "text columns"),
        (TableColumns(text="text,text"), "text columns"),
        (TableColumns(label=" "), "label column"),
        (TableColumns(client=""), "client column"),
        (TableColumns(part=""), "part column"),
    ],
)
def test_columns_that_make_no_sense(tmp_path: Path, columns: TableColumns, told: str) -> None:
    assert told in refused(table(tmp_path, ROWS), columns)


def test_nothing_shows_a_cell(tmp_path: Path) -> None:
    rows = [(f"{S} {i // 2}", "ab"[i % 2], f"{S}") for i in range(6)]
    corpus = read_table(table(tmp_path, [*rows, ("", "a", S)], ("text", "label", "c")), TableColumns(client="c"))
    assert SECRET not in repr(corpus) + str(corpus.warnings)
    assert len(corpus.warnings) == 4
    assert f"{SECRET} 0" not in repr(corpus.examples[0])


# Public texts


def public(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{name} does not lie beside the repository")
    return path


def test_medquad() -> None:
    corpus = read_table(public("medquad/medquad_topic4.csv.gz"), TableColumns(part="split"))
    assert len(corpus.examples) == 3449 and len(corpus.task.classes) == 4
    sizes = Counter(corpus.task.classes[example.label or 0] for example in corpus.examples)
    assert sorted(sizes.values()) == [559, 676, 1084, 1130] and sizes["cancer"] == 676
    assert Counter(example.part for example in corpus.examples) == {"train": 2387, "validation": 372, "test": 690}


def test_mts_dialog() -> None:
    columns = TableColumns("section_text,dialogue", "section_header", part="split")
    corpus = read_table(public("mts_dialog/mts_dialog.csv.gz"), columns)
    assert len(corpus.examples) == 1701 and len(corpus.task.classes) == 20
    assert [name for name, _ in corpus.examples[0].sections] == ["section_text", "dialogue"]
    assert Counter(example.part for example in corpus.examples) == {"train": 1201, "validation": 100, "test": 400}
