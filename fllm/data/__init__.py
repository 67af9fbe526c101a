"""Clinical cases: the loader of MIMIC-IV-Ext-CDM, a fabricated cohort in the same layout, and notes."""

from fllm.data.cdm import DIAGNOSES, Case, Cohort, Culture, LabResult, RadiologyReport, load_cohort
from fllm.data.corpus import Corpus, Example, Task
from fllm.data.prompts import FIELDS, answer, build_note, check_fields, diagnosis_corpus, note_sections
from fllm.data.synthetic import SyntheticTables, load_synthetic, synthesize_cohort, write_cohort

__all__ = [
    "DIAGNOSES",
    "FIELDS",
    "Case",
    "Cohort",
    "Corpus",
    "Culture",
    "Example",
    "LabResult",
    "RadiologyReport",
    "SyntheticTables",
    "Task",
    "answer",
    "build_note",
    "check_fields",
    "diagnosis_corpus",
    "load_cohort",
    "load_synthetic",
    "note_sections",
    "synthesize_cohort",
    "write_cohort",
]
