"""What the terminal shows of a finished sweep: the findings of its report, energy and latency of the base device."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from fllm.report.sweep.contents import contents
from fllm.report.sweep.facts import analyse

_WIDTH = 110
_INDENT = " " * 10


def terminal_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a sweep's findings in lines of a terminal's width."""
    found = contents(analyse(result))
    lines = ["data      SYNTHETIC: fabricated patients, no clinical meaning"] if found["synthetic"] else []
    for number, sentence in enumerate(found["findings"]):
        head = "found     " if number == 0 else _INDENT
        lines += textwrap.wrap(sentence, _WIDTH, initial_indent=head, subsequent_indent=_INDENT)
    for title, value, below in found["cards"]:
        if title.endswith("per token"):
            lines.append(f"{title.split()[0].lower():<10}{value} per token (modelled); {'; '.join(below)}")
    return lines
