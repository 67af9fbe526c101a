"""Clinical cases: the loader of MIMIC-IV-Ext-CDM, a fabricated cohort in the same layout, notes and partitions."""

from fllm.data.cdm import DIAGNOSES, Case, Cohort, LabResult, RadiologyReport, load_cohort
from fllm.data.partition import Split, partition_by_hospital, split_cases
from fllm.data.prompts import FIELDS, answer, build_note, check_fields, note_sections
from fllm.data.synthetic import SyntheticTables, load_synthetic, synthesize_cohort, write_cohort

__all__ = [
    "DIAGNOSES",
    "FIELDS",
    "Case",
    "Cohort",
    "LabResult",
    "RadiologyReport",
    "Split",
    "SyntheticTables",
    "answer",
    "build_note",
    "check_fields",
    "load_cohort",
    "load_synthetic",
    "note_sections",
    "partition_by_hospital",
    "split_cases",
    "synthesize_cohort",
    "write_cohort",
]
