"""``fllm cost``: energy, latency and area of a model on a device, without its weights. Thin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from device_models.errors import InputError
from device_models.quantities import format_quantity, parse_quantity


def cost(
    model: Annotated[str, typer.Option(help="Shipped configuration, model folder, or config.json.")],
    device_model: Annotated[str, typer.Option(help="Device file, or name of a shipped one.")] = "gaincell_28nm",
    compare: Annotated[
        tuple[str, str] | None, typer.Option(help="Two devices beside each other, instead of --device-model.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Length of the text.")] = 1024,
    window: Annotated[int | None, typer.Option(help="Tokens that a head holds; default that of the device.")] = None,
    token_period: Annotated[str, typer.Option(help="Time between two tokens, such as '10 us', or 'auto'.")] = "auto",
    adapter_rank: Annotated[int | None, typer.Option(help="Rank of a LoRA adapter beside all linear layers.")] = None,
    activity: Annotated[
        tuple[float, float], typer.Option(help="Charge that both arrays draw; 1 1 is the published stimulus.")
    ] = (1.0, 1.0),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Device key: --set retention.tau='1 ms' --set cost.av_adc=sar.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file; - prints it.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="New folder for figures (SVG and PNG).")] = None,
) -> None:
    """Price a model by its configuration: energy by part with intervals, latency, area, against baselines."""
    from device_models.costs import Activity
    from device_models.strict_yaml import parse_yaml
    from fllm.cost import Question, cost_facts, device_of
    from fllm.model_config import read_model_config
    from hwsim.shapes import model_shape

    _check(tokens, adapter_rank, activity)
    name, config = read_model_config(model)
    overrides: dict[str, object] = {}
    for text in set_ or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError("cannot be read", where=f"--set {text}", expected="key=value, such as readout.bits=6")
        overrides[key.strip()] = parse_yaml(value, f"--set {key}")
    asked = Question(
        model_shape(config, name), tokens, None if token_period == "auto" else _period(token_period), adapter_rank,
        Activity(*activity),
    )  # fmt: skip
    devices = [device_of(chosen, overrides, window) for chosen in compare or (device_model,)]
    facts = [cost_facts(asked, device) for device in devices]
    _check_outputs(json_file, figures)
    if figures is not None:
        from fllm.report.energy_figures import write_cost_figures  # matplotlib, which a table does not need

        write_cost_figures(facts, figures)
    if json_file is not None:
        _write_json(json_file, facts)
    if json_file != Path("-"):
        _print(Console(highlight=False, markup=False), facts)


def _check(tokens: int, adapter_rank: int | None, activity: tuple[float, float]) -> None:
    if not 1 <= tokens <= 10_000_000:
        raise InputError("out of range", where="--tokens", expected="1 to 10000000", received=tokens)
    if adapter_rank is not None and not 1 <= adapter_rank <= 65536:
        raise InputError("out of range", where="--adapter-rank", expected="1 to 65536", received=adapter_rank)
    if not all(0.0 <= part <= 100.0 for part in activity):
        raise InputError("out of range", where="--activity", expected="two numbers from 0 to 100", received=activity)


def _check_outputs(json_file: Path | None, figures: Path | None) -> None:
    """Refuse places that cannot be written to before anything is written."""
    if json_file is not None and json_file != Path("-") and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise InputError("cannot be written", where=f"--json {json_file}", expected="a file in a folder that exists")
    if figures is not None and figures.exists():
        raise InputError("is there already", where=f"--figures {figures}", remedy="name a new folder")


def _period(text: str) -> float:
    try:
        period = parse_quantity(text, "s")
    except ValueError as error:
        raise InputError(str(error), where="--token-period", received=text) from None
    if not 0 < period <= 1e6:
        raise InputError("out of range", where="--token-period", expected="above 0 s, at most 1e6 s", received=text)
    return period


def _write_json(file: Path, facts: list[dict[str, Any]]) -> None:
    import json

    text = json.dumps(facts[0] if len(facts) == 1 else facts, indent=1, sort_keys=True, allow_nan=False)
    if file == Path("-"):
        print(text)
    else:
        file.write_text(f"{text}\n", encoding="utf-8", newline="\n")


def _print(console: Console, facts: list[dict[str, Any]]) -> None:
    """Print what a person wants to know; JSON has the rest."""
    for found in facts:
        _print_head(console, found)
    console.print(_energy_table(facts))
    console.print()
    console.print(_time_table(facts))
    console.print()
    for found in facts:
        technology = found["decode"]["area_technology"].get("attention cells")
        if technology:
            console.print(f"{found['device']['name']}, area of attention cells: {technology}.", soft_wrap=True)
        for sentence in found["decode"]["dominates"]:
            console.print(f"{found['device']['name']}: {sentence}.", soft_wrap=True)
        for note in found["decode"]["price_notes"]:
            console.print(f"{found['device']['name']}: {note}.", soft_wrap=True)
        if found["too_slow"]:
            name = found["device"]["name"]
            console.print(
                f"{name} cannot keep up: a token takes longer than the given period, so its latency stands in for it.",
                soft_wrap=True,
            )
    for found in facts:
        title = found["device"]["name"] if len(facts) > 1 else ""
        console.print()
        console.print(_baseline_table(found, title))
    console.print(
        "\nModelled: counted events times prices, no chip was measured. Baselines are no like-for-like systems: their"
        " caveats, all prices and the numbers that matter most are in --json; sources: fllm device cite.",
        soft_wrap=True,
    )


def _print_head(console: Console, found: Mapping[str, Any]) -> None:
    model, device = found["model"], found["device"]
    heads = f"{model['heads']} heads" + (
        f" on {model['kv_heads']} stored ones" if model["kv_heads"] != model["heads"] else ""
    )
    console.print(f"{model['name']} on {device['name']}: {device['title']}", style="bold", soft_wrap=True)
    console.print(
        f"{model['layers']} layers, {heads} of {model['head_dim']}, window {device['window_tokens']};"
        f" {model['linear_weights'] / 1e6:.4g} M weights taken as ternary on arrays; LM head and other digital weights"
        f" in {found['decode']['digital_weights_in']}",
        soft_wrap=True,
    )
    own = found["token_period_auto"] or found["too_slow"]
    basis = "the model's own latency with a full window" if own else "given"
    console.print(f"A token every {_quantity(found['token_period_s'], 's')} ({basis}).\n", soft_wrap=True)


def _energy_table(facts: list[dict[str, Any]]) -> Table:
    """List parts, lines and total per token; decoding with its interval where there is one device."""
    tokens, alone = facts[0]["tokens"], len(facts) == 1
    table = _table(f"energy per token, text of {tokens}")
    for found in facts:
        name = "" if alone else f"\n{found['device']['name']}"
        table.add_column(f"decode{name}", justify="right", no_wrap=True)
        if alone:
            table.add_column("95 % interval", justify="right", style="dim", no_wrap=True)
    for found in facts:
        table.add_column("prefill" if alone else f"prefill\n{found['device']['name']}", justify="right", no_wrap=True)

    def add(name: str, *path: str, style: str | None = None) -> None:
        cells: list[str] = []
        for mode in ("decode", "prefill"):
            for found in facts:
                value: Any = found[mode]
                for key in path:
                    value = value.get(key, {})
                shown, ends = _cells(value)
                cells += [shown, ends] if alone and mode == "decode" else [shown]
        table.add_row(name, *cells, style=style)

    for part in dict.fromkeys(
        part for found in facts for mode in ("decode", "prefill") for part in found[mode]["parts_j"]
    ):
        add(part, "parts_j", part)
    for line in dict.fromkeys(line for found in facts for line in found["decode"]["lines_j"]):
        add(f"all {line}", "lines_j", line, style="bold")
    add("both together", "energy_per_token_j", style="bold")
    return table


def _table(*headings: str) -> Table:
    return Table(*headings, box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _cells(interval: Mapping[str, float]) -> tuple[str, str]:
    if not interval:
        return "", ""
    ends = f"{_quantity(interval['lower_95'], 'J')} to {_quantity(interval['upper_95'], 'J')}"
    return _quantity(interval["nominal"], "J"), ends if interval["low"] != interval["high"] else ""


def _time_table(facts: list[dict[str, Any]]) -> Table:
    table = _table("time and area")
    for found in facts:
        table.add_column(found["device"]["name"], justify="right")
        table.add_column("low to high", justify="right", style="dim")
    table.add_row("latency of a token (decode)", *_ranged(facts, "latency_per_token_s", "s"))
    prefill = [(_quantity(found["prefill"]["latency_s"], "s"), "") for found in facts]
    table.add_row(f"latency of {facts[0]['tokens']} tokens (prefill)", *(cell for pair in prefill for cell in pair))
    parts = facts[0]["decode"]["area_m2"]["parts"]
    for part in parts:
        areas = [found["decode"]["area_m2"]["parts"][part] for found in facts]
        if max(areas) > 0:
            table.add_row(f"area, {part}", *(cell for area in areas for cell in (_area(area), "")))
    heads = [found["decode"]["area_m2"]["attention_head"] for found in facts]
    table.add_row("area, one stored head", *(cell for area in heads for cell in (_area(area), "")))
    ends = [found["decode"]["area_m2"]["total"] for found in facts]
    table.add_row(
        "area, whole model",
        *(cell for e in ends for cell in (_area(e["nominal"]), f"{_area(e['low'])} to {_area(e['high'])}")),
        style="bold",
    )
    return table


def _ranged(facts: list[dict[str, Any]], key: str, unit: str) -> list[str]:
    cells: list[str] = []
    for found in facts:
        ends = found["decode"][key]
        shown = f"{_quantity(ends['low'], unit)} to {_quantity(ends['high'], unit)}"
        cells += [_quantity(ends["nominal"], unit), shown if ends["low"] != ends["high"] else ""]
    return cells


def _baseline_table(found: Mapping[str, Any], title: str) -> Table:
    """List baselines under their scope, whose energy on the device stands in the heading row."""
    table = _table("the same token elsewhere" + (f" ({title})" if title else ""))
    table.add_column("energy", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    rows = found["decode"]["baselines"]
    for scope in dict.fromkeys(row["scope"] for row in rows):
        members = [row for row in rows if row["scope"] == scope]
        table.add_row(f"{scope}, here", _quantity(members[0]["device_energy_per_token_j"], "J"), "1", style="bold")
        if leaks := members[0]["device_leakage_per_token_j"]:
            own = members[0]["device_energy_per_token_j"]
            ratio = _ratio(1 + leaks / own) if own else ""
            table.add_row("  with what leaks in a token period", _quantity(own + leaks, "J"), ratio)
        for row in members:
            ratio = "" if row["ratio"] is None else _ratio(row["ratio"])
            table.add_row(f"  {row['name']}", _quantity(row["energy_per_token_j"], "J"), ratio)
    return table


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= value < 1e7 else f"{value:.3g}"


def _quantity(value: float, unit: str) -> str:
    return format_quantity(value, unit)


def _area(value: float) -> str:
    square_mm = value * 1e6
    return f"{square_mm:,.0f} mm2" if square_mm >= 100 else f"{square_mm:.3g} mm2"
