"""``fllm generate``: text from an emulated device, and what it cost. Thin; heavy imports inside the command.

The text goes to the standard output and everything else to the error stream, so that it can be piped.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from device_models import InputError, format_quantity
from fllm.console import EXIT_FAILED, EXIT_INTERRUPTED, quiet_libraries

if TYPE_CHECKING:
    from fllm.config import RunConfig
    from fllm.generation import Desk, Writing


def generate(
    model: Annotated[str | None, typer.Option(help="Folder of the model; default is the shipped base model.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Folder of a trained adapter, or of its run.")] = None,
    device_model: Annotated[str, typer.Option(help="Device file, or name of a shipped one.")] = "gaincell_28nm",
    prompt: Annotated[str | None, typer.Option(help="The text to go on with.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="File that holds it; - reads the standard input.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most new tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above, tokens are drawn.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the likeliest tokens only.")] = None,
    seed: Annotated[int, typer.Option(help="Decides draws, noise and chips.")] = 0,
    die: Annotated[int, typer.Option(help="Chip, one of those that a run of this seed is evaluated on.")] = 0,
    token_period: Annotated[str, typer.Option(help="Time between two tokens, such as '10 us', or 'auto'.")] = "10 us",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Device key: --set readout.bits=6 --set retention.tau='1 ms'.")
    ] = None,
) -> None:
    """Write text token by token on an emulated device; print energy and modelled latency per token at the end."""
    from fllm.config import load_config

    _check(max_new_tokens, temperature, top_k, die)
    given = {"model": model, "adapter": adapter, "device_model": device_model, "token_period": token_period}
    settings: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    config = load_config(None, settings | {"seed": seed, "threads": threads} | _device_settings(set_))
    text, where = _prompt(prompt, prompt_file)
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with quiet_libraries():
        desk, writing = _prepare(config, die, text, where, errors)
        from fllm.generation import Sampling, room_behind

        writing.sampling = Sampling(temperature, top_k, seed)
        writing.most = min(max_new_tokens, room_behind(writing.prompt, desk.model, max_new_tokens))
        code = _write_out(writing, desk)
    if writing.most < max_new_tokens and len(writing.tokens) == writing.most:
        errors.print("stopped: the model knows no position beyond")
    _print_summary(errors, writing, desk)
    if code:
        raise typer.Exit(code)


def _check(max_new_tokens: int, temperature: float, top_k: int | None, die: int) -> None:
    if max_new_tokens < 1:
        raise InputError("out of range", where="--max-new-tokens", expected="1 or more", received=max_new_tokens)
    if not 0 <= temperature <= 100:
        raise InputError("out of range", where="--temperature", expected="0 to 100", received=temperature)
    if top_k is not None and (top_k < 1 or temperature == 0):
        raise InputError(
            "has no effect" if temperature == 0 else "out of range", where="--top-k",
            expected="a --temperature above 0" if temperature == 0 else "1 or more", received=top_k,
        )  # fmt: skip
    if die < 0:
        raise InputError("out of range", where="--die", expected="0 or more", received=die)


def _device_settings(texts: list[str] | None) -> dict[str, object]:
    """Read device keys, also where they are written as those of a run are; raises InputError."""
    from fllm.config import parse_setting

    pairs = [parse_setting(text) for text in texts or []]
    return {key if key.startswith("device.") else f"device.{key}": value for key, value in pairs}


def _prompt(text: str | None, file: Path | None) -> tuple[str, str]:
    """Return the prompt and where it is from; a last line break of a file is not part of it."""
    if (text is None) == (file is None):
        raise InputError("give one prompt", where="fllm generate", expected="either --prompt or --prompt-file")
    where = "--prompt" if file is None else f"--prompt-file {file}"
    if file is not None:
        try:
            text = sys.stdin.read() if file == Path("-") else file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError("not a text file", where=where, expected="UTF-8") from None
        text = text.removesuffix("\n")
    if not text:
        raise InputError("the prompt is empty", where=where, expected="a text to go on with")
    return text, where


def _prepare(config: RunConfig, die: int, text: str, where: str, errors: Console) -> tuple[Desk, Writing]:
    with errors.status("loading the model") as status:
        from fllm.generation import Writing, open_desk, tokens_of
        from hwsim import native

        if native.compiles_at_first_use():
            status.update("compiling kernels, once on this machine")
            native.available()
            status.update("loading the model")
        desk = open_desk(config, die)
        prompt = tokens_of(text, desk.tokenizer, desk.model, where)
        return desk, Writing(desk.model, prompt, most=1, end=desk.tokenizer.eos_token_id)


def _write_out(writing: Writing, desk: Desk) -> int:
    """Print the text as it comes; the exit code."""
    from fllm.generation import text_of

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console that lacks a character must not end the text
    try:
        for piece in text_of(iter(writing), writing.prompt, desk.tokenizer):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader has enough; what is buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return 0


def _print_summary(errors: Console, writing: Writing, desk: Desk) -> None:
    from fllm.generation import energy_rows

    phases = {"prefill": writing.prefill, "decode": writing.decode}
    costs = {name: phase.cost(desk.device, desk.period_s) for name, phase in phases.items()}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("energy per token, modelled")
    for name, cost in costs.items():
        table.add_column(f"{name}, {cost.tokens} tokens", justify="right", no_wrap=True)
    for row, values in energy_rows(costs):
        style = None if row in costs["prefill"].energy_j else "bold"
        table.add_row(row, *(_quantity(value, "J") for value in values.values()), style=style)
    table.add_row(
        "latency per token, modelled",
        *(_quantity(cost.latency_per_token_s, "s") for cost in costs.values()),
        style="bold",
    )
    errors.print(f"\ntokens: {len(writing.prompt)} of the prompt, {len(writing.tokens)} new, on {desk.device.name}")
    errors.print(table)
    errors.print(
        f"simulated in {writing.prefill.simulated_s:.2f} s (prefill) and {writing.decode.simulated_s:.2f} s (decode):"
        " the speed of this program, not of the hardware"
    )


def _quantity(value: float | None, unit: str) -> str:
    return "-" if value is None else format_quantity(value, unit)
