"""``fllm generate``: the text alone on the standard output, all else beside it, and one line for what is refused."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fllm import cli, generation
from tests.fllm.small import CANARY

PROMPT = f"Imaging: ultrasound of the abdomen shows {CANARY}"
LIGHT = ("--threads", "1", "--max-new-tokens", "5")


class Said:
    """What a command left."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def called(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["fllm", "generate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Said(int(stop.value.code or 0), *capsys.readouterr())

    return called


def test_text_is_all_of_the_standard_output(call: Callable[..., Said]) -> None:
    said = call("--prompt", PROMPT, *LIGHT)
    assert said.code == 0, said.stderr
    desk = generation.open_desk(generation.RunConfig(threads=1), 0)
    prompt = generation.tokens_of(PROMPT, desk.tokenizer, desk.model, "here")
    new = list(generation.Writing(desk.model, prompt, 5))
    assert said.stdout == desk.tokenizer.decode(new) + "\n"
    assert f"tokens: {len(prompt)} of the prompt, 5 new" in said.stderr
    assert f"prefill, {len(prompt)} tokens" in said.stderr and "decode, 4 tokens" in said.stderr
    for row in ("all arrays", "all digital accelerator", "both together"):
        assert re.search(rf"^{row} +[\d.]+ [pnum]J +[\d.]+ [pnum]J", said.stderr, re.M), row
    assert re.search(r"^latency per token, modelled +[\d.]+ [num]s +[\d.]+ [num]s", said.stderr, re.M)
    assert re.search(
        r"simulated in [\d.]+ s \(prefill\) and [\d.]+ s \(decode\): the speed of this program", said.stderr
    )
    assert CANARY not in said.stderr


def test_prompt_comes_from_a_file_or_the_standard_input(
    call: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text(f"{PROMPT}\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPT}\n"))
    given = [("--prompt", PROMPT), ("--prompt-file", tmp_path / "prompt.txt"), ("--prompt_file", "-")]
    assert len({call(*one, *LIGHT).stdout for one in given}) == 1


def test_settings_of_the_device_act(call: Callable[..., Said]) -> None:
    keys = ("readout.bits=1", "device.readout.bits=1")
    said = [call("--prompt", PROMPT, *LIGHT, "--set", key).stdout for key in keys]
    assert said[0] == said[1] != call("--prompt", PROMPT, *LIGHT).stdout
    longer = call("--prompt", PROMPT, *LIGHT, "--token-period", "auto", "--die", "3", "--device-model", "gaincell_igzo")
    assert longer.code == 0 and "5 new, on gaincell_igzo" in longer.stderr


def test_text_ends_where_the_model_has_no_position_left(
    call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "room_behind", lambda prompt, model, most: min(most, 2))
    said = call("--prompt", PROMPT, *LIGHT)
    assert (said.code, "2 new" in said.stderr) == (0, True)
    assert "stopped: the model knows no position beyond" in said.stderr


def test_interruption_keeps_what_was_written(call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = call("--prompt", PROMPT, *LIGHT).stdout
    passes = generation.Writing._pass

    def stop_at_third(self: generation.Writing, *given: object) -> object:
        if len(self.tokens) == 3:
            raise KeyboardInterrupt
        return passes(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(generation.Writing, "_pass", stop_at_third)
    said = call("--prompt", PROMPT, *LIGHT)
    assert said.code == 130
    assert said.stdout.strip() and whole.startswith(said.stdout.rstrip("\n"))
    assert "3 new" in said.stderr and "decode, 2 tokens" in said.stderr


def test_interruption_before_the_first_token(call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation.Writing, "_pass", stop)
    said = call("--prompt", PROMPT, *LIGHT)
    assert (said.code, said.stdout) == (130, "\n")
    assert "0 new" in said.stderr and "Traceback" not in said.stderr


def test_reader_that_has_enough_is_no_failure_of_ours(
    call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return unused.fileno()

    with (tmp_path / "unused").open("w") as unused:
        monkeypatch.setattr(sys, "stdout", Closed())
        said = call("--prompt", PROMPT, *LIGHT)
    assert said.code == 1
    assert "internal error" not in said.stderr and "1 new" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "either --prompt or --prompt-file"),
        (["--prompt", "a", "--prompt-file", "b"], "either --prompt or --prompt-file"),
        (["--prompt", ""], "--prompt: the prompt is empty"),
        (["--prompt-file", "absent.txt"], "absent.txt"),
        (["--prompt", f"{CANARY} " * 600, "--threads", "1"], "longer than the model's positions"),
        (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens: out of range"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature: out of range"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature: out of range"),
        (["--prompt", "a", "--top-k", "5"], "--top-k: has no effect; expected a --temperature above 0"),
        (["--prompt", "a", "--top-k", "0", "--temperature", "1"], "--top-k: out of range"),
        (["--prompt", "a", "--die", "-1"], "--die: out of range"),
        (["--prompt", "a", "--seed", "-1"], "seed"),
        (["--prompt", "a", "--threads", "0"], "threads"),
        (["--prompt", "a", "--set", "readout.bitz=3"], "did you mean readout.bits"),
        (["--prompt", "a", "--set", "readout.bits"], "key=value"),
        (["--prompt", "a", "--token-period", "10 V"], "token_period"),
        (["--prompt", "a", "--model", "absent"], "absent: no such model folder"),
        (["--prompt", "a", "--adapter", "absent"], "absent: no such adapter folder"),
        (["--prompt", "a", "--device-model", "gaincell_28mm"], "did you mean gaincell_28nm"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(call: Callable[..., Said], arguments: list[str], named: str) -> None:
    said = call(*arguments)
    assert (said.code, said.stdout) == (2, "")
    assert said.stderr.startswith("error: ") and len(said.stderr.splitlines()) == 1
    assert named in said.stderr and CANARY not in said.stderr


def test_file_that_is_no_text_and_model_without_tokenizer(
    call: Callable[..., Said], tmp_path: Path, model_copy: Path
) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in call("--prompt-file", tmp_path / "prompt.txt").stderr
    for file in model_copy.glob("tokenizer*"):
        file.unlink()
    said = call("--prompt", "a", "--model", model_copy, "--threads", "1")
    assert (said.code, said.stdout) == (2, "")
    assert "tokenizer" in said.stderr and len(said.stderr.splitlines()) == 1
