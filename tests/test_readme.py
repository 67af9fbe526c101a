"""What the README promises is run."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from fllm.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_python_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})
    energy_per_token = float(capsys.readouterr().out)
    assert 1e-9 < energy_per_token < 1e-3


def test_shell_blocks_name_what_exists() -> None:
    main_job, tests, _, _ = blocks("bash")
    assert (ROOT / shlex.split(main_job)[-1]).is_file()
    assert "-c constraints.txt" in main_job and "-c constraints.txt" in tests
    windows = blocks("powershell")
    assert len(windows) == 2 and all("constraints.txt" in block for block in windows)


def test_cost_block_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fllm import cli

    _, _, _, command = blocks("bash")
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/fllm" and arguments[0] == "cost"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["fllm", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    for named in ("decode", "prefill", "area", "H100"):
        assert named in out


def test_sweep_block_is_accepted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything up to the evaluations, which take minutes."""
    from fllm import cli, sweep_cli

    _, _, command, _ = blocks("bash")
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/fllm" and arguments[0] == "sweep"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sweep_cli, "_print_dry_run", lambda plan, *_: print(len(plan.points), plan.dies))
    monkeypatch.setattr(sys, "argv", ["fllm", *arguments, "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (0, "24 4\n"), err


def test_links_point_to_files() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_commands_in_the_text_are_options_that_exist() -> None:
    """Options named in the text are options of ``fllm-run`` and ``fllm sweep``."""
    from fllm import cli, sweep_cli

    known = set(re.findall(r'"(--[a-z-]+)"', Path(cli.__file__).read_text(encoding="utf-8")))
    known |= {f"--{name.replace('_', '-')}" for name in cli.run.__annotations__}
    swept = {f"--{name.replace('_', '-')}" for name in sweep_cli.sweep.__annotations__}
    for commands, options in (("fllm-run", known), ("fllm sweep", swept)):
        for command in re.findall(rf"`({commands} [^`]*)`", README):
            for option in re.findall(r"(--[a-z_-]+)", command):
                assert option.replace("_", "-") in options, command


def test_default_run_file_is_the_default() -> None:
    assert load_config(ROOT / "configs" / "runs" / "default.yaml") == load_config()
