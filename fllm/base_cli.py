"""Command line: ``fllm base``. Thin; heavy imports inside the commands."""

from __future__ import annotations

import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from device_models import InputError
from fllm.console import EXIT_INTERRUPTED, ProgressTerminal, print_error, quiet_libraries
from fllm.convert_cli import base_convert

if TYPE_CHECKING:
    from fllm.model.pretrain import Progress as Step
    from fllm.model.pretrain import Workplace

base_app = typer.Typer(help="Base models, trained from scratch.", no_args_is_help=True)
base_app.command("convert")(base_convert)


@base_app.command("build")
def base_build(
    out: Annotated[Path, typer.Argument(help="Folder to write the model to.")],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Text to train on: plain (documents parted by blank lines), JSONL, CSV, TSV, also .gz. "
                          "Without it the shipped base is built, on made-up notes whose diagnosis is withheld."),
    ] = None,
    validation: Annotated[
        list[Path] | None, typer.Option(help="Text held out; default a twentieth of the documents.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of a table with the text; default text.")] = None,
    size: Annotated[str | None, typer.Option(help="Parameters: 1m (default), 3m, 10m or 30m.")] = None,
    device: Annotated[str | None, typer.Option(help="Machine to train on: cpu (default), or cuda in bfloat16.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to train on, instead of steps; default 20 per parameter.")
    ] = None,
    summary: Annotated[
        bool | None, typer.Option("--summary/--no-summary", help="Whether it also learns to sum up short passages.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default 2.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in this folder; takes no other option.")] = False,
) -> None:  # fmt: skip
    """Train tokenizer and ternary base model from scratch, on a device, and score them on held-out text."""
    given: dict[str, Any] = {
        "corpus": corpus or None, "validation": validation or None, "text-column": text_column, "size": size,
        "device": device, "steps": steps, "tokens": tokens, "summary": summary, "seed": seed, "threads": threads,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    _check(given, resume=resume)
    with quiet_libraries():
        from fllm.model.pretrain import Workplace

        workplace, existed = Workplace(out), out.exists()
        if not resume:
            workplace.begin(_settings(given))
        try:
            _build(workplace, workplace.settings())
        except InputError:
            if not resume:
                workplace.abandon(folder=not existed)
            raise
        except KeyboardInterrupt:
            command = shlex.join(["fllm", "base", "build", str(out), "--resume"])
            print_error(f"interrupted; {'state saved' if workplace.state.exists() else 'nothing was trained yet'}."
                        f" Continue with: {command}")  # fmt: skip
            raise typer.Exit(EXIT_INTERRUPTED) from None


_OF_A_CORPUS = ("validation", "text-column", "size", "device", "tokens", "summary")


def _check(given: Mapping[str, Any], *, resume: bool) -> None:
    """Check what does not need the model; raises InputError."""
    if resume and given:
        raise InputError("--resume takes no other option", received=f"--{min(given)}", expected="the former settings")
    alone = [name for name in _OF_A_CORPUS if name in given and "corpus" not in given]
    if alone:
        raise InputError("needs --corpus", where=f"--{alone[0]}", expected="text of your own")
    if "steps" in given and "tokens" in given:
        raise InputError("--steps and --tokens", expected="one of them")
    if given.get("device", "cpu") not in ("cpu", "cuda"):
        raise InputError("unknown machine", where="--device", expected="cpu or cuda", received=given["device"])
    for name, least in (("steps", 1), ("tokens", 1), ("threads", 1), ("seed", 0)):
        if given.get(name, least) < least:
            raise InputError("out of range", where=f"--{name}", expected=f"{least} or more", received=given[name])


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be built, as JSON; raises InputError where this machine or a file cannot serve."""
    from fllm.model.pretrain import BaseRecipe, Sources, recipe_of, steps_for

    changes = {name: given[name] for name in ("steps", "seed") if name in given}
    common = {"threads": given.get("threads", 2)}
    if "corpus" not in given:
        return common | {"kind": "clinical", "recipe": asdict(replace(BaseRecipe(), **changes))}
    where = given.get("device", "cpu")
    recipe = recipe_of(given.get("size", "1m"))
    if given.get("summary") is False:
        recipe = replace(recipe, passages=0)
    if where == "cuda":
        _check_cuda()
        recipe = replace(recipe, precision="bfloat16")
    recipe = replace(recipe, steps=steps_for(recipe, given.get("tokens")))
    recipe = replace(recipe, **changes)
    corpus, validation = ([str(path.resolve()) for path in given.get(name, ())] for name in ("corpus", "validation"))
    sources = Sources(corpus, validation, given.get("text-column", "text"), where)
    sources.split(recipe)  # a file that cannot be read is found before anything is written
    return common | {"kind": "text", "recipe": asdict(recipe), "sources": asdict(sources)}


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError("no CUDA device", where="--device", expected="a GPU that torch can use", remedy="train on cpu")


def _build(workplace: Workplace, settings: Mapping[str, Any]) -> None:
    import torch

    from fllm.model.pretrain import BaseRecipe, Sources, TextRecipe, build_base, build_text_base

    torch.set_num_threads(settings["threads"])
    console = Console()
    with _Terminal(console) as terminal:
        if settings["kind"] == "clinical":
            losses = build_base(workplace, BaseRecipe(**settings["recipe"]), terminal.step)
            named = {key.partition("bits_per_byte_")[2]: score for key, score in losses.items()}
            rows = {name: score for name, score in named.items() if name}
        else:
            recipe, sources = TextRecipe(**settings["recipe"]), Sources(**settings["sources"])
            made = build_text_base(workplace, recipe, sources, terminal.step, terminal.stage)
            rows = made["bits_per_byte"]
    table = Table("held-out text", "bits per byte", box=None)
    names = {"unigram": "frequencies of tokens", "bigram": "frequencies of token pairs"}
    for name, value in rows.items():
        table.add_row(names.get(name, name), f"{value:.4f}")
    console.print(table)
    console.print(str(workplace.folder), soft_wrap=True, highlight=False)


class _Terminal(ProgressTerminal):
    """Progress of a training: steps, loss, rate, time left."""

    def __init__(self, console: Console) -> None:
        progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(), console=console,
        )  # fmt: skip
        super().__init__(console, progress, facts="")
        self._rate = Rate()

    def step(self, step: Step) -> None:
        """Advance the bar."""
        rate = self._rate.after(step.tokens)
        facts = f"loss {step.loss:.3f}" + (f"  {rate:,.0f} tokens/s" if rate else "")
        self._progress.update(self._task, description="training", total=step.steps, completed=step.step, facts=facts)


class Rate:
    """Tokens per second [1/s] over the last half minute or so."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, span_s: float = 30.0) -> None:
        self._clock, self._span = clock, span_s
        self._seen: deque[tuple[float, int]] = deque()

    def after(self, tokens: int) -> float:
        """Note a total, and return the rate; 0 while nothing can be said."""
        now = self._clock()
        self._seen.append((now, tokens))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self._span:
            self._seen.popleft()
        first, before = self._seen[0]
        return (tokens - before) / (now - first) if now > first else 0.0
