"""``fllm device``: check, read, compare and fit device files. Thin; heavy imports inside the commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from device_models import DeviceModel, Provenance
    from device_models.fitting import FitResult

device_app = typer.Typer(help="Device files.", no_args_is_help=True)

NameOrFile = Annotated[str, typer.Argument(help="Device file, or name of a shipped one.")]
_WIDE = 150
"""Columns of a terminal from which on ``show`` prints a table."""
_QUANTITY = re.compile(r"^([-+.\deE]*\d[-+.\deE]*)\s+(\S.*)$")


@device_app.command("check")
def device_check(files: Annotated[list[str], typer.Argument(help="Device files, or names of shipped ones.")]) -> None:
    """Say whether device files are valid."""
    from device_models import load_device

    for file in files:
        device = load_device(file)
        assumed = sum(found.kind == "assumed" for found in device.provenance.values())
        _console().print(f"{file}: valid; {len(device.provenance)} values, {assumed} of them assumed", soft_wrap=True)


@device_app.command("show")
def device_show(name: NameOrFile) -> None:
    """Show every value of a device beside its unit, source, kind, range and note."""
    from device_models import load_device

    device, console = load_device(name), _console()
    if console.width >= _WIDE:
        console.print(_table(device))
    else:
        console.print(device.title, style="bold")
        for entry in _entries(device):
            _print_record(console, entry)


@device_app.command("diff")
def device_diff(one: NameOrFile, other: NameOrFile) -> None:
    """Show the values that differ between two devices; the same quantity in another unit does not differ."""
    from device_models import load_device

    console, (left, right) = _console(), (load_device(one), load_device(other))
    table = Table("key", one, "kind", other, "kind")
    for a, b in zip(_entries(left), _entries(right), strict=True):
        if a.value != b.value:
            table.add_row(a.key, a.text, a.kind, b.text, b.kind)
    console.print(table if table.row_count else f"no value differs between {one} and {other}")


@device_app.command("cite")
def device_cite(name: NameOrFile) -> None:
    """Give the full citation of each source of a device, and the keys that use it."""
    from device_models import load_device, references

    device, console = load_device(name), _console()
    for source, keys in sorted(_used(device).items()):
        console.print(source, style="bold")
        console.print(Padding(references().get(source, "Set by whoever wrote the file."), (0, 0, 0, 4)))
        console.print(Padding("used by " + ", ".join(keys), (0, 0, 1, 4)), style="dim")


@device_app.command("fit")
def device_fit(
    data: Annotated[Path, typer.Argument(help="CSV: voltage_V,current_A or time_s,voltage_V or input,code.")],
    base: Annotated[str, typer.Option(help="Device that the points belong to: file, or name of a shipped one.")],
    out: Annotated[Path | None, typer.Option(help="New device file; without it the fit is only shown.")] = None,
    law: Annotated[str | None, typer.Option(help="Law to fit, instead of the one that the points support.")] = None,
    v_inf: Annotated[str | None, typer.Option(help="Level that cells relax to, such as '0.45 V', if known.")] = None,
    temperature: Annotated[str | None, typer.Option(help="Of a retention measurement, such as '85 degC'.")] = None,
    input_range: Annotated[
        tuple[str, str] | None, typer.Option(help="Inputs of lowest and highest code, such as '0 V' '0.9 V' or 0 1.")
    ] = None,
    accept_misfit: Annotated[
        bool, typer.Option("--accept-misfit", help="Take a law that misses by more than the noise.")
    ] = False,
) -> None:
    """Fit measured points of a cell, its retention or a converter, and write them into a device file."""
    from device_models import load_device
    from device_models.fitting import fit, read_points, write_device

    points = read_points(data)
    ends = None if input_range is None else [_given("--input-range", end, points.input_unit) for end in input_range]
    result = fit(
        points,
        load_device(base),
        law=law,
        v_inf=None if v_inf is None else _given("--v-inf", v_inf, "V"),
        temperature=None if temperature is None else _given("--temperature", temperature, "K"),
        input_range=None if ends is None else (ends[0], ends[1]),
        accept_misfit=accept_misfit,
    )
    if out is not None:
        write_device(result, base, out)
    _print_fit(_console(), result)
    if out is not None:
        _console().print(f"{out}: {base} with {', '.join(result.leaves)}", soft_wrap=True)


def _given(option: str, text: str, unit: str) -> float:
    """Read the value of an option: a quantity, or a number where there is no unit."""
    from device_models import InputError, parse_quantity

    try:
        return parse_quantity(text, unit) if unit else float(text)
    except ValueError as error:
        reason = str(error) if unit else "expected a number without unit, as the input column has none"
        raise InputError(reason, where=option, received=text) from None


def _print_fit(console: Console, result: FitResult) -> None:
    """Print the fitted numbers with their intervals, the comparison of laws, and what to know."""
    from device_models import format_quantity

    def shown(value: float) -> str:
        return f"{value:.3g} {result.unit}" if result.unit == "LSB" else format_quantity(value, result.unit)

    residual = f"residual {shown(result.residual_rms)} rms"
    console.print(f"{result.file}: {result.kind}, {result.points} points, {residual}", soft_wrap=True)
    console.print(f"{result.law}: {result.selection}", soft_wrap=True)
    numbers = Table("parameter", "value", "95 % interval", "written to")
    for p in result.parameters:
        exact = p.low == p.value == p.high
        interval = "" if exact else f"{p.text(p.low, 4)} to {p.text(p.high, 4)}"
        numbers.add_row(p.name, p.text(digits=5), interval, p.key or "")
    console.print(numbers)
    if len(result.comparison) > 1:
        laws = Table("law", "numbers", "residual", "AICc", "remark")
        for candidate in result.comparison:
            above = f"{candidate.aicc - result.comparison[0].aicc:+.1f}"
            taken = "taken" if candidate.law == result.law else candidate.problem or ""
            laws.add_row(candidate.law, str(candidate.parameters), shown(candidate.residual_rms), above, taken)
        console.print(laws)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)


@dataclass(frozen=True)
class _Entry:
    """One key of a device: its value in SI units, as text, and where it comes from (None: default of the program)."""

    key: str
    value: object
    text: str
    provenance: Provenance | None

    @property
    def kind(self) -> str:
        return "default" if self.provenance is None else self.provenance.kind


def _entries(device: DeviceModel) -> Iterator[_Entry]:
    """List every key, also those that the file leaves at their default."""
    from device_models import format_quantity
    from device_models.loading import key_units
    from device_models.provenance import written

    for key, unit in key_units().items():
        section, _, name = key.partition(".")
        value, source = getattr(getattr(device, section), name), device.provenance.get(key)
        if source is not None:
            text = source.text
        else:
            text = written(value) if unit is None or value is None else format_quantity(value, unit, 6)
        yield _Entry(key, value, text, source)


def _parted(text: str) -> tuple[str, str]:
    """Part the number of a quantity from its unit; a list gets one line for each item."""
    items = text[1:-1].split(", ") if text.startswith("[") else [text]
    parts = [found.groups() if (found := _QUANTITY.match(item)) else (item, "") for item in items]
    return "\n".join(number for number, _ in parts), "\n".join(unit for _, unit in parts)


def _background(entry: _Entry) -> tuple[str, str, str]:
    """Return source, range and note as texts."""
    found = entry.provenance
    if found is None:
        return "not in the file", "", ""
    source = found.source if found.where == "note" else f"{found.source}, {found.where}"
    return source, f"{found.range[0]} to {found.range[1]}" if found.range else "", found.note or ""


def _table(device: DeviceModel) -> Table:
    """Return a table with a row for each key, for a wide terminal."""
    table = Table(title=device.title, title_justify="left", title_style="bold", row_styles=["", "on grey11"])
    table.add_column("key", no_wrap=True)
    for heading in ("value", "unit", "kind", "source", "range", "note"):
        table.add_column(heading, overflow="fold")
    for entry in _entries(device):
        table.add_row(entry.key, *_parted(entry.text), entry.kind, *_background(entry))
    return table


def _print_record(console: Console, entry: _Entry) -> None:
    """Print a key as one line and what stands behind it as a paragraph below, for a narrow terminal."""
    source, bounds, note = _background(entry)
    numbers, units = (column.split("\n") for column in _parted(entry.text))
    key, kind = entry.key, entry.kind
    for number, unit in zip(numbers, units, strict=True):
        console.print(f"{key:<32}{number:>16} {unit:<8} {kind}".rstrip(), soft_wrap=True)
        key = kind = ""
    for text in (source, bounds and f"range {bounds}", note):
        if text and entry.provenance is not None:
            console.print(Padding(text, (0, 0, 0, 4)), style="dim")


def _used(device: DeviceModel) -> dict[str, list[str]]:
    """Return the keys that name each source; those that only mention it in their note are marked."""
    from device_models import references

    used: dict[str, list[str]] = {}
    for key, found in device.provenance.items():
        used.setdefault(found.source, []).append(key)
        mentioned = set(re.findall(r"\w+", f"{found.where} {found.note or ''}")) & set(references())
        for source in sorted(mentioned - {found.source, "project"}):
            used.setdefault(source, []).append(f"{key} (note)")
    return used


def _console() -> Console:
    return Console(highlight=False, markup=False)


@device_app.command("explain")
def device_explain(
    name: NameOrFile,
    window: Annotated[int | None, typer.Option(help="Tokens that a head holds; default that of the device.")] = None,
    token_period: Annotated[str, typer.Option(help="Time between two tokens, such as '10 us'.")] = "10 us",
    head_dim: Annotated[int, typer.Option(help="Dimensions of a head.")] = 64,
    clips: Annotated[bool, typer.Option("--clips", help="Count what the shipped model clips.")] = False,
    model: Annotated[str | None, typer.Option(help="Folder of a model whose clips are counted instead.")] = None,
) -> None:
    """Show what a designer asks first: resolution, retention, signal-to-noise ratio by effect, clipping."""
    from device_models import InputError, load_device

    period = _given("--token-period", token_period, "s")
    if not period > 0:
        raise InputError("out of range", where="--token-period", expected="> 0 s", received=token_period)
    if not 1 <= head_dim <= 1024:
        raise InputError("out of range", where="--head-dim", expected="1 to 1024", received=head_dim)
    device = load_device(name, {} if window is None else {"window.tokens": window})
    from fllm.device_explain import explain, explain_clips  # torch, which bad input should not wait for

    explain(_console(), device, period, head_dim)
    if clips or model is not None:
        explain_clips(_console(), device, period, model)
