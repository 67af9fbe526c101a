"""``fllm base build``: what it prints, refuses in one line, and how it goes on after Ctrl-C."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from fllm.base_cli import Rate
from fllm.model import pretrain
from fllm.model.pretrain import Progress
from tests.fllm.conftest import Terminal
from tests.fllm.made_up_text import SMALL, documents

Build = Callable[..., tuple[str, str]]
OWN = ("--corpus", "CORPUS", "--text-column", "body")


@pytest.fixture
def build(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Return a function that runs ``fllm base build`` and returns what it prints and what it complains about."""
    monkeypatch.setitem(pretrain.SIZES, "1m", SMALL)
    return partial(terminal, "base", "build")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(json.dumps({"body": text}) for text in documents(120)), encoding="utf-8")
    return file


def test_build_on_own_text(build: Build, corpus: Path, tmp_path: Path) -> None:
    out, _ = build(
        tmp_path / "a", "--corpus", corpus, "--text-column", "body", "--steps", 2, "--seed", 3, "--threads", 1
    )
    for word in ("bits per byte", "gaincell_28nm", "ideal", "frequencies of tokens", "frequencies of token pairs"):
        assert word in out
    provenance = json.loads((tmp_path / "a" / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["recipe"]["steps"] == 2 and provenance["recipe"]["seed"] == 3
    assert provenance["passages"] > 0
    assert str(tmp_path) not in json.dumps(provenance)


def test_tokens_and_no_summary(build: Build, corpus: Path, tmp_path: Path) -> None:
    options = ("--corpus", corpus, "--validation", corpus, "--text-column", "body", "--no-summary", "--threads", 1)
    build(tmp_path / "a", *options, "--tokens", 3 * 64)
    provenance = json.loads((tmp_path / "a" / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["recipe"]["steps"] == 3 and provenance["tokens_seen"] == 3 * 64
    assert provenance["passages"] == 0
    assert provenance["validation_sha256"] == provenance["corpus_sha256"]


def test_interrupted_build_says_how_to_go_on(
    build: Build, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fllm.base_cli import _Terminal

    former = _Terminal.step

    def interrupt(self: _Terminal, progress: Progress) -> None:
        former(self, progress)
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    options = ("--corpus", corpus, "--text-column", "body", "--steps", 4, "--threads", 1)
    build(tmp_path / "whole", *options)
    monkeypatch.setattr(_Terminal, "step", interrupt)
    folder = tmp_path / "with blank"
    _, err = build(folder, *options, code=130)
    assert err == f"interrupted; state saved. Continue with: fllm base build '{folder}' --resume\n"
    assert "go on with --resume" in build(folder, *options, code=2)[1]
    monkeypatch.setattr(_Terminal, "step", former)
    corpus.unlink()  # its tokens are kept
    build(folder, "--resume")
    for name in ("model.safetensors", "gain_cell.safetensors", "provenance.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "no unfinished training" in build(folder, "--resume", code=2)[1]


def test_interrupted_before_the_first_step(
    build: Build, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fllm.model.pretrain.text.tokenise", interrupt)
        _, err = build(tmp_path / "a", "--corpus", corpus, "--text-column", "body", "--steps", 1, code=130)
    assert err.startswith("interrupted; nothing was trained yet. Continue with: fllm base build ")
    build(tmp_path / "a", "--resume")
    assert (tmp_path / "a" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--size", "2m", "--corpus", "CORPUS"],
            "--size: unknown size; expected one of 1m, 3m, 10m, 30m; received '2m'",
        ),
        (["--size", "3m"], "--size: needs --corpus"),
        (["--no-summary"], "--summary: needs --corpus"),
        (["--steps", "3", "--tokens", "4", "--corpus", "CORPUS"], "--steps and --tokens; expected one of them"),
        (["--steps", "0"], "--steps: out of range"),
        (["--tokens", "0", "--corpus", "CORPUS"], "--tokens: out of range"),
        (["--threads", "0"], "--threads: out of range"),
        (["--seed", "-1"], "--seed: out of range"),
        (["--device", "tpu", "--corpus", "CORPUS"], "--device: unknown machine; expected cpu or cuda"),
        (["--device", "cuda", "--corpus", "CORPUS"], "--device: no CUDA device"),
        (["--corpus", "absent.txt"], "absent.txt: the file does not exist"),
        (
            ["--corpus", "CORPUS", "--text-column", "body", "--validation", "absent.txt"],
            "absent.txt: the file does not exist",
        ),
        (["--corpus", "CORPUS"], "column 'text' missing"),
        (["--corpus", "SHORT", "--text-column", "body"], "the corpus is shorter than one batch"),
        (["--resume"], "no unfinished training"),
        (["--resume", "--seed", "1"], "--resume takes no other option"),
    ],
)
def test_refused_in_one_line_with_nothing_written(
    build: Build, corpus: Path, tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    short = tmp_path / "short.jsonl"
    short.write_text('{"body": "a few words"}\n{"body": "and more"}\n', encoding="utf-8")
    given = [{"CORPUS": str(corpus), "SHORT": str(short)}.get(word, word) for word in options]
    _, err = build(tmp_path / "a", *given, code=2)
    assert message in err
    assert not (tmp_path / "a").exists()


def test_folder_in_use_is_left_alone(build: Build, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine", encoding="utf-8")
    assert "not empty; name a new one" in build(folder, "--corpus", corpus, "--text-column", "body", code=2)[1]
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_without_a_corpus_the_shipped_recipe_is_built(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(
        pretrain.BaseRecipe(), notes=200, hospitals=2, hidden_size=32, intermediate_size=48, layers=1, heads=1
    )
    monkeypatch.setattr(pretrain, "BaseRecipe", lambda **settings: replace(small, **settings))
    out, _ = build(tmp_path / "a", "--steps", 1, "--threads", 1)
    assert "bits per byte" in out
    assert json.loads((tmp_path / "a" / "provenance.json").read_text(encoding="utf-8"))["recipe"]["steps"] == 1


def test_rate_is_that_of_the_last_half_minute() -> None:
    times = iter([0.0, 10.0, 20.0, 30.0, 40.0, 50.0])
    rate = Rate(lambda: next(times))
    assert [rate.after(n) for n in (0, 1000, 2000, 3000, 3000, 3000)] == [0, 100, 100, 100, 200 / 3, 100 / 3]
