"""The fixed laboratory panels: which tests a note shows, in which order, and in which words.

A panel is the same for every case, whatever its label. Values are graded against the reference range of their own row,
so that a note does not depend on the analyser or its units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from fllm.data.cdm import LabResult

Panel = Literal["short", "full"]

PANEL: dict[str, tuple[int, ...]] = {
    "wbc": (51301, 51755, 51300),
    "neutrophils": (51256,),
    "alt": (50861,),
    "ast": (50878,),
    "alk phos": (50863,),
    "bilirubin": (50885, 50883),
    "lipase": (50956,),
    "amylase": (50867,),
    "crp": (50889, 51652),
    "lactate": (50813,),
}
"""The short panel: short name -> itemids, the first one that can be graded counts."""

FULL_PANEL: dict[str, tuple[int, ...]] = {
    "wbc": PANEL["wbc"], "neutrophils": PANEL["neutrophils"], "lymphocytes": (51244, 51245),
    "hemoglobin": (51222, 50811), "hematocrit": (51221, 51638, 51480, 50810), "rbc": (51279,), "mcv": (51250,),
    "rdw": (51277,), "platelets": (51265,),
    "sodium": (50983, 52623, 50824), "potassium": (50971, 52610, 50822), "chloride": (50902, 52535, 50806),
    "bicarbonate": (50882, 50803), "anion gap": (50868,), "urea nitrogen": (51006, 52647),
    "creatinine": (50912, 52546, 52024), "glucose": (50931, 52569, 50809), "calcium": (50893, 51624),
    "magnesium": (50960,), "phosphate": (50970,),
    "alt": PANEL["alt"], "ast": PANEL["ast"], "alk phos": PANEL["alk phos"], "bilirubin": PANEL["bilirubin"],
    "albumin": (50862,), "ldh": (50954,), "lipase": PANEL["lipase"], "amylase": PANEL["amylase"],
    "triglycerides": (51000,), "crp": PANEL["crp"], "lactate": PANEL["lactate"],
    "inr": (51237, 51675), "pt": (51274,), "ptt": (51275,),
}  # fmt: skip
"""The full panel of 34 blood tests, laboratory before bedside analyser.

Source: itemids and their alternates are those of the release's public code (MIMIC-Clinical-Decision-Making-Framework,
tools/utils.py, MIT). Ionised calcium is another quantity than total calcium and no alternate here.
"""

URINALYSIS: dict[str, tuple[int, ...]] = {
    "color": (51508,), "appearance": (51506,), "specific gravity": (51498, 51994), "ph": (51491, 51094, 52730),
    "nitrite": (51487, 51987), "leukocytes": (51486, 51985), "ketone": (51484, 51984), "glucose": (51478, 51981),
    "bilirubin": (51464, 51966), "protein": (51492, 51992),
}  # fmt: skip
"""The ten tests of the urine that the full panel adds, from the same source."""

VERY_HIGH = 3.0
"""Multiple of the upper limit from which a value is called very high [1]; the enzyme criterion of pancreatitis."""

_NORMAL = "normal"
_MEASURED = ("specific gravity", "ph")
_URINE_WORDS: dict[str, str] = {
    **dict.fromkeys(("neg", "negative", "none", "norm", "normal", "yellow", "yel", "straw", "clear"), _NORMAL),
    "tr": "trace", "trace": "trace", "sm": "small", "small": "small", "mod": "moderate", "moderate": "moderate",
    "lg": "large", "large": "large", "pos": "positive", "positive": "positive",
    "hazy": "hazy", "slhazy": "hazy", "cloudy": "cloudy", "slcldy": "cloudy",
    "amber": "amber", "orange": "orange", "red": "red", "pink": "pink", "brown": "brown",
}  # fmt: skip


def grade(result: LabResult) -> str | None:
    """Grade a value against its own row's reference range: low, normal, high, or very high from 3 x the upper limit.

    Returns:
        The grade, or None when the value is no number or a limit is missing.
    """
    if result.number is None or result.lower is None or result.upper is None:
        return None
    if result.number < result.lower:
        return "low"
    if result.number <= result.upper:
        return _NORMAL
    return "very high" if result.number >= VERY_HIGH * result.upper else "high"


def labs_text(labs: Sequence[LabResult], panel: Panel = "short") -> str:
    """Write a panel; tests that were not measured or cannot be graded are left out.

    The full panel ends in the urinalysis: its abnormal tests in words, or ``urine normal``.
    """
    found = {result.itemid: result for result in labs}
    parts = []
    for name, itemids in (PANEL if panel == "short" else FULL_PANEL).items():
        graded = next((word for i in itemids if i in found and (word := grade(found[i]))), None)
        if graded is not None:
            parts.append(f"{name} {graded}")
    return ", ".join(parts + (_urinalysis(found) if panel == "full" else []))


def _urinalysis(found: Mapping[int, LabResult]) -> list[str]:
    words = {}
    for name, itemids in URINALYSIS.items():
        word = next((word for i in itemids if i in found and (word := _urine_word(name, found[i]))), None)
        if word is not None:
            words[name] = word
    abnormal = [f"urine {name} {word}" for name, word in words.items() if word != _NORMAL]
    return abnormal or (["urine normal"] if words else [])


def _urine_word(name: str, result: LabResult) -> str | None:
    """Return a word of a closed list, so that a laboratory's comment never enters a note."""
    word = grade(result)
    if word is not None or name in _MEASURED:
        return word
    if result.number is not None:
        return "present" if result.number > 0 else _NORMAL
    return _URINE_WORDS.get("".join(result.value.lower().split()).strip("."))
