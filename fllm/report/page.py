"""What every report shares: a template becomes one HTML file that carries its style, its script and its figures.

A page asks the network for nothing. Its content security policy lets one script run, the one whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def fill(template: str, **values: Any) -> str:
    """Fill a template of this package; a name that the template asks for and nobody gave is an error.

    Args:
        template: File name under ``templates/``: a page that extends ``base.html.j2``, whose values are escaped, or
            Markdown, ``.md.j2``, whose values are not.
        **values: The names that the template uses.

    Returns:
        The whole page or document.
    """
    return _environment().get_template(template).render(**values)


def save(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder, made when it is missing.

    Args:
        folder: Where to write.
        files: Content by path relative to the folder, with forward slashes.

    Returns:
        The written files in the order given.
    """
    written = []
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(path)
    return written


def data_uri(content: bytes, media_type: str = "image/svg+xml") -> str:
    """Inline a file as an address of its own."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fllm.report", "templates"),
        autoescape=lambda name: name is None or not name.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = data_uri
    script = resources.files("fllm.report").joinpath("templates", "report.js").read_text(encoding="utf-8")
    environment.globals["script"] = Markup(script)
    environment.globals["script_hash"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment
