"""The data card of a fabricated cohort: what it is, how it was made, what is in it, and what it must not be used for.

Every count is taken from the tables of this cohort; only the difficulty is a figure of the standard cohort. The card
holds no date, so equal recipes give equal cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from fllm.data.cdm_cases import DIAGNOSES
from fllm.data.synthetic_facts import (
    Facts,
    age_rows,
    availability_rows,
    count_facts,
    difficulty_rows,
    file_rows,
    hospital_rows,
    length_rows,
)
from fllm.data.synthetic_spec import difficulty, specification
from fllm.data.synthetic_tables import SyntheticRecipe, SyntheticTables

_NOTICE = """# Data card: synthetic cohort

**SYNTHETIC DATA - EVERYTHING HERE IS FABRICATED**

A made-up cohort of patients with acute abdominal pain in the layout of MIMIC-IV-Ext-CDM v1.1. It contains no MIMIC
content and describes no real person. Every phrase was written for this project, and every probability is rounded
judgement, not epidemiology: draw no medical conclusion from it. All admissions are numbered from 90000000 and all note
ids start with SYN-, which no real record does. `hospital_ids.json` is an addition for federated learning; the real
release has no hospitals.
"""

_USE = """## Use and licence

- For: testing and comparing methods, federated learning and hardware emulation without access to clinical data.
- Not for: clinical use, medical teaching, epidemiology, or any statement on how well a method diagnoses real patients.
- Licence: Apache-2.0, as the generator. No data use agreement applies, since nothing comes from patients.
"""

_UNREAL = """## Known to be unrealistic

- Only four diagnoses, none of them rare, and always one label, although some patients have a second condition.
- Sentences come from a small phrase bank, so a method may learn the bank; there are no typing errors.
- Findings are independent of one another once the diagnosis and its presentation are given; nothing has a course over
  time.
- Each admission is another patient; the real release has a few patients with several admissions.
- The cause named in the discharge diagnosis or in an ICD title need not fit the history, and the procedure does not
  depend on the severity.
- {lengths}
- Reference ranges differ between hospitals, but not by sex or age.
"""

_COMPACT = """Texts and lists are shorter than in the real release: {history:.0f} characters of history and {labs:.0f} \
laboratory tests
  in the median, where it has 832 and 56. The argument `realistic` lengthens both."""
_REALISTIC = """Histories and laboratory lists are about as long as in the real release, {history:.0f} characters and \
{labs:.0f} tests in
  the median, but what lengthens them says nothing."""

_CUES = """## Known cues

What tells the diagnosis without being a finding. The first three exist in the real release as well.

- Which studies, cultures and laboratory tests were done depends on the suspected diagnosis.
- The mask `____` stands in the radiology reports of a share of cases that differs between the diagnoses.
- Lengths differ between the diagnoses{lengths}.
- The style of a note hints at the hospital, and the hospital at the diagnosis, the more the lower the label
  concentration is. Here {share:.1f} % of the cases have the most frequent diagnosis of their hospital,
  {majority:.1f} % that of the cohort.
"""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table that reads well as plain text: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"


def _package_version() -> str:
    try:
        return version("fllm")
    except PackageNotFoundError:
        return "(not installed)"


def _origin(recipe: SyntheticRecipe) -> str:
    rows = [
        ("generator", f"fllm {_package_version()}, fllm.data.write_cohort"),
        ("specification", f"version {specification()['version']}"),
        ("n_cases", str(recipe.n_cases)),
        ("n_hospitals", str(recipe.n_hospitals)),
        ("seed", str(recipe.seed)),
        ("label_concentration", str(recipe.label_concentration)),
        ("realistic", str(recipe.realistic)),
    ]
    return "## How it was made\n\n" + _table(("argument", "value"), rows)


def _cues(facts: Facts, recipe: SyntheticRecipe) -> str:
    lengths = ", that of the history on purpose" if recipe.realistic else ""
    return _CUES.format(lengths=lengths, share=100 * facts.hospital_majority, majority=100 * facts.majority)


def _unreal(facts: Facts, recipe: SyntheticRecipe) -> str:
    sentence = _REALISTIC if recipe.realistic else _COMPACT
    return _UNREAL.format(lengths=sentence.format(history=facts.history_length, labs=facts.labs_per_case))


def _difficulty() -> str:
    figures = difficulty()
    seeds = " and ".join(str(seed) for seed in figures["seeds"])
    return f"""## Measured difficulty

Not of this cohort but of the standard one: 2400 cases, 8 hospitals, label concentration 1.0, seeds {seeds}. Five-fold
cross-validation of logistic regression (C = 10) on TF-IDF of words and word pairs (sublinear); laboratory values as
low, normal or high, imaging as the findings of the abdomen. Other seeds mix the diagnoses at the hospitals in another
way, and with the history alone the accuracy moves by several points.

""" + _table(("shown", "accuracy", "macro-F1"), difficulty_rows())


def data_card(tables: SyntheticTables) -> str:
    """Write the card of a cohort as Markdown that also reads well as plain text."""
    facts, classes = count_facts(tables), list(DIAGNOSES)
    parts = [
        _NOTICE,
        _origin(tables.recipe),
        "## Files\n\n" + _table(("file", "rows", "cases with a row"), file_rows(tables)),
        "## Cases by hospital and diagnosis\n\n" + _table(("hospital", *classes, "all"), hospital_rows(tables)),
        "## Patients\n\nAges in years; most histories show the age as ___.\n\n"
        + _table(("", *classes), age_rows(tables)),
        "## Lengths\n\nMedian (5th to 95th percentile) over the cases; texts in characters.\n\n"
        + _table(("", *classes), length_rows(facts)),
        "## What was done\n\nShare of cases with at least one row [%].\n\n"
        + _table(("", *classes), availability_rows(facts)),
        _cues(facts, tables.recipe),
        _unreal(facts, tables.recipe),
        _difficulty(),
        _USE,
    ]
    return "\n".join(parts)
