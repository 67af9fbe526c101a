"""How good a model's answers are, and how far that can be trusted: likelihoods, written answers, metrics, intervals."""

from fllm.evaluation.answers import generation_facts
from fllm.evaluation.calibration import at_temperature, calibrated, fit_temperature
from fllm.evaluation.facts import evaluation_facts, scores_facts
from fllm.evaluation.generation import generate_answers
from fllm.evaluation.intervals import bootstrap_interval, mcnemar
from fllm.evaluation.likelihood import evaluate, padded
from fllm.evaluation.metrics import bits_per_byte, macro_f1
from fllm.evaluation.prompts import Prompt
from fllm.evaluation.rules import class_of, diagnosis_of, parse_answer
from fllm.evaluation.scores import METRICS, Scores, joined, over_dies

__all__ = [
    "METRICS",
    "Prompt",
    "Scores",
    "at_temperature",
    "bits_per_byte",
    "bootstrap_interval",
    "calibrated",
    "class_of",
    "diagnosis_of",
    "evaluate",
    "evaluation_facts",
    "fit_temperature",
    "generate_answers",
    "generation_facts",
    "joined",
    "macro_f1",
    "mcnemar",
    "over_dies",
    "padded",
    "parse_answer",
    "scores_facts",
]
