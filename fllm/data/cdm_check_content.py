"""Checks of what the cases of a cohort hold: coverage, cues that tell a class, and texts that name the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

from fllm.data.cdm import names_itself
from fllm.data.cdm_cases import MIMIC_IDS, PUBLISHED_COUNTS, SYNTHETIC_FIRST_ID, Case, Cohort
from fllm.data.cdm_counts import SMALLEST, count_text, number_of, partition_texts, share_text
from fllm.data.cdm_files import EXAMINATION, HISTORY, LABELS, LABS, MICROBIOLOGY, RADIOLOGY
from fllm.data.cdm_finding import Finding, Level, by_class, of_class, shares_by_class

SHORTEST_EXAMINATION = 40
"""Characters that the release requires of an examination."""

_MODALITIES = ("Radiograph", "CT", "Ultrasound", "MRCP", "ERCP", "MRI", "CTU", "Drainage")
_SHOWN_MODALITIES: dict[str, str] = {"CT": "94/42/91/51 %", "Ultrasound": "24/87/19/73 %"}
_MASK = "____"


@dataclass(frozen=True, eq=False)
class _Cases:
    """The cases of a cohort, all and by class, and how much of them may be shown."""

    all: tuple[Case, ...]
    groups: dict[str, list[Case]]
    real: bool
    mimic: bool

    def share(self, holds: Callable[[Case], bool]) -> str:
        return share_text(sum(map(holds, self.all)), len(self.all), real=self.real)

    def shares(self, holds: Callable[[Case], bool]) -> str:
        return shares_by_class(self.groups, holds, real=self.real)

    def medians(self, size: Callable[[Case], int]) -> str:
        """Return the median of each class, unless the class is so small that it would be a patient's own value."""
        fewest = SMALLEST if self.real else 1
        return by_class(
            {
                name: "not shown" if len(cases) < fewest else format(median(map(size, cases)), ",.0f")
                for name, cases in self.groups.items()
            }
        )

    def published(self, figures: str) -> str:
        return f" (in v1.1: {figures})" if self.mimic else ""


def check_content(cohort: Cohort) -> list[Finding]:
    """Check the cases of a cohort that could be read."""
    mimic = all(case.hadm_id in MIMIC_IDS for case in cohort.cases)
    cases = _Cases(cohort.cases, of_class(cohort.cases), not cohort.synthetic, mimic)
    checks = (_histories, _examinations, _labs, _radiology, _microbiology, _labels, _hospitals, _identifiers)
    return [finding for check in checks for finding in check(cases)]


def _leak(cases: _Cases, file: str, holds: Callable[[Case], bool], level: Level) -> Iterator[Finding]:
    count = sum(map(holds, cases.all))
    if not count:
        yield Finding(file, "ok", "no text names its own diagnosis", "the answer does not stand in the text")
        return
    what = f"{count_text(count, real=cases.real)} cases name their own diagnosis"
    yield Finding(file, level, what, "the answer stands in the text: accuracy would be too high, or labels are wrong")


def _blank(cases: _Cases, file: str, holds: Callable[[Case], bool], what: str, meaning: str) -> Iterator[Finding]:
    if any(map(holds, cases.all)):
        yield Finding(file, "warning", f"{what}: {cases.share(holds)}", meaning)


def _names_itself(case: Case, column: str) -> bool:
    return names_itself(getattr(case, column), case.diagnosis)


def _leak_level(cases: _Cases) -> Level:
    """An own diagnosis in a text is impossible in the release and in a fabricated cohort, and bad elsewhere."""
    return "error" if cases.mimic or not cases.real else "warning"


def _histories(cases: _Cases) -> Iterator[Finding]:
    yield from _leak(cases, HISTORY, partial(_names_itself, column="history"), _leak_level(cases))
    yield from _blank(cases, HISTORY, lambda case: not case.history.strip(), "no text", "those cases lack a history")
    lengths = cases.medians(lambda case: len(case.history))
    meaning = "length alone tells something of the class; clip it" + cases.published("603/884/1,060/1,540")
    yield Finding(HISTORY, "note", f"median characters: {lengths}", meaning)
    known = cases.share(lambda case: case.age is not None)
    yield Finding(HISTORY, "note", f"age stated: {known}", "clients by age need it; other cases have no age band")
    counts = Counter(" ".join(case.history.split()) for case in cases.all if case.history.strip())
    twice = sum(count for count in counts.values() if count > 1)
    if twice:
        what = f"{count_text(twice, real=cases.real)} cases share their history word for word with another"
        yield Finding(HISTORY, "warning", what, "one patient may stand in training and in test")


def _examinations(cases: _Cases) -> Iterator[Finding]:
    yield from _leak(cases, EXAMINATION, partial(_names_itself, column="examination"), _leak_level(cases))
    meaning = f"the release requires {SHORTEST_EXAMINATION}"
    short: Callable[[Case], bool] = lambda case: len(case.examination.strip()) < SHORTEST_EXAMINATION  # noqa: E731
    yield from _blank(cases, EXAMINATION, short, f"under {SHORTEST_EXAMINATION} characters", meaning)


def _labs(cases: _Cases) -> Iterator[Finding]:
    yield from _blank(cases, LABS, lambda case: not case.labs, "no result", "those cases are read without laboratory")
    rows = [lab for case in cases.all for lab in case.labs]
    if not rows:
        return
    tests = {lab.itemid for lab in rows}
    yield Finding(LABS, "ok", number_of(len(tests), "test"), "runs show the same fixed panel for every case")
    unnamed = [lab.itemid for lab in rows if lab.label == f"item {lab.itemid}"]
    if unnamed:
        of_rows = f"{_percent(len(unnamed), len(rows))} of the rows"
        what = f"no name in the mapping: {number_of(len(set(unnamed)), 'test')}, {of_rows}"
        yield Finding(LABS, "note", what, "they are known by number only")
    ranges = sum(lab.lower is None or lab.upper is None for lab in rows)
    what = f"no reference range: {_percent(ranges, len(rows))} of the rows"
    yield Finding(LABS, "note", what, "those values cannot be graded low, normal or high" + cases.published("29 %"))
    texts = sum(lab.number is None for lab in rows)
    yield Finding(LABS, "note", f"value is no number: {_percent(texts, len(rows))} of the rows", "kept as text")
    inverted = sum(lab.lower is not None and lab.upper is not None and lab.lower > lab.upper for lab in rows)
    if inverted:
        what = f"the reference range ends below its start: {number_of(inverted, 'row')}"
        yield Finding(LABS, "warning", what, "their values are graded wrongly")
    counts = cases.medians(lambda case: len(case.labs))
    meaning = "the number of tests tells something of the class" + cases.published("52/58/59/60")
    yield Finding(LABS, "note", f"median results: {counts}", meaning)


def _percent(count: int, total: int) -> str:
    """Return a share of rows; rows are no patients, so none is held back."""
    return share_text(count, total, real=False)


def _radiology(cases: _Cases) -> Iterator[Finding]:
    yield from _leak(
        cases, RADIOLOGY, lambda case: any(names_itself(r.text, case.diagnosis) for r in case.radiology), "warning"
    )
    no_abdomen: Callable[[Case], bool] = lambda case: all(r.region != "Abdomen" for r in case.radiology)  # noqa: E731
    yield from _blank(cases, RADIOLOGY, no_abdomen, "no report of the abdomen", "the release has one for every case")
    masked = cases.shares(lambda case: any(_MASK in report.text for report in case.radiology))
    meaning = "the mask stands where a disease was named, a cue; neutralise it" + cases.published("42/27/51/34 %")
    yield Finding(RADIOLOGY, "note", f"masked words: {masked}", meaning)
    for modality, figures in _SHOWN_MODALITIES.items():
        having = cases.shares(partial(_has, modality=modality))
        meaning = "the choice of examination tells something of the class" + cases.published(figures)
        yield Finding(RADIOLOGY, "note", f"with {modality}: {having}", meaning)
    repeated = cases.share(lambda case: _repeats(case) > 0)
    surplus = sum(map(_repeats, cases.all))
    if surplus:
        count = count_text(surplus, real=cases.real)
        what = f"{count} reports with a modality and region that the case already has: {repeated}"
        meaning = "all are kept; one for each pair would drop them" + cases.published("1,337 in 17 %")
        yield Finding(RADIOLOGY, "note", what, meaning)
    rows = [report for case in cases.all for report in case.radiology]
    other = sum(report.modality not in _MODALITIES for report in rows)
    if other:
        yield Finding(RADIOLOGY, "note", f"rarer modalities: {_percent(other, len(rows))} of the reports", "kept")
    nameless = sum(not report.note_id.strip() for report in rows)
    if nameless:
        what = f"{number_of(nameless, 'report')} without note_id"
        yield Finding(RADIOLOGY, "warning", what, "a repeated one cannot be found")


def _has(case: Case, modality: str) -> bool:
    return any(report.modality == modality for report in case.radiology)


def _repeats(case: Case) -> int:
    return len(case.radiology) - len({(report.modality, report.region) for report in case.radiology})


def _microbiology(cases: _Cases) -> Iterator[Finding]:
    without = cases.share(lambda case: not case.microbiology)
    meaning = "they are kept, an inner join would drop them" + cases.published("23 %")
    yield Finding(MICROBIOLOGY, "note", f"no culture: {without}", meaning)


def _labels(cases: _Cases) -> Iterator[Finding]:
    sizes = [len(group) for group in cases.groups.values()]
    shown = by_class(dict(zip(cases.groups, partition_texts(sizes, real=cases.real), strict=True)))
    if cases.mimic and sizes != list(PUBLISHED_COUNTS.values()):
        meaning = "v1.1 has " + "/".join(map(str, PUBLISHED_COUNTS.values())) + ": published figures do not compare"
        yield Finding(LABELS, "warning", shown, meaning)
    else:
        yield Finding(LABELS, "ok", shown, "one class for each case" + (", as published" if cases.mimic else ""))
    if 0 in sizes:
        yield Finding(LABELS, "warning", "a class without any case", "figures over all classes are not defined")


def _hospitals(cases: _Cases) -> Iterator[Finding]:
    sizes = sorted(Counter(case.hospital for case in cases.all if case.hospital is not None).values())
    if not sizes:
        yield Finding("cohort", "note", "no hospitals are named", "cases are dealt to clients by a rule")
        return
    shown = partition_texts(sizes, real=cases.real)
    what = f"{number_of(len(sizes), 'hospital')}; cases of the smallest: {shown[0]}, of the largest: {shown[-1]}"
    few = sizes[0] < 2 * SMALLEST
    meaning = "every case has one" + ("; the smallest is too small to train on" if few else "")
    yield Finding("cohort", "warning" if few else "ok", what, meaning)


def _identifiers(cases: _Cases) -> Iterator[Finding]:
    count = number_of(len(cases.all), "case")
    if not cases.real:
        yield Finding("cohort", "ok", f"{count}, all FABRICATED", "no figure has clinical meaning")
        return
    if cases.mimic:
        meaning = "17 patients of v1.1 have several admissions, and the files do not say which: splits are by admission"
        yield Finding("cohort", "note", f"{count} with identifiers of MIMIC-IV", meaning)
        meaning = "send them to no outside service; what is trained on them, adapters too, must stay private"
        yield Finding("cohort", "note", "under the PhysioNet Credentialed Health Data Use Agreement", meaning)
        return
    meaning = "splits are by admission; a patient with several may be trained and tested on"
    yield Finding("cohort", "note", f"{count} with identifiers that are not of MIMIC-IV", meaning)
    if any(case.hadm_id >= SYNTHETIC_FIRST_ID for case in cases.all):
        what = f"admissions numbered from {SYNTHETIC_FIRST_ID:,}, as fabricated ones are"
        yield Finding("cohort", "warning", what, "they count as real: their reports are not marked as fabricated")
