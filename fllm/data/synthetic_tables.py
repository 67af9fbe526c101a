"""What is asked of the synthetic cohort and what it consists of, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field

from device_models.errors import InputError
from fllm.data.synthetic_patients import Patient

DEFAULT_CASES = 2400
"""Size of the real release."""

LABEL_CONCENTRATION = 10.0
"""How alike the hospitals' mixes of diagnoses are: Dirichlet concentration; 0.1 is extreme, 100 nearly none."""

_MOST_CASES = 250_000


@dataclass(frozen=True)
class SyntheticRecipe:
    """All that decides a fabricated cohort; equal recipes give equal bytes.

    Args:
        n_cases: Number of cases.
        n_hospitals: Number of hospitals.
        seed: Seed of every draw.
        label_concentration: Dirichlet concentration of the hospitals' mixes of diagnoses [1].
        realistic: Whether histories and laboratory lists are about as long as in the real release.

    Raises:
        InputError: If there are no cases, too many, more hospitals than cases, or the concentration is not positive.
    """

    n_cases: int = DEFAULT_CASES
    n_hospitals: int = 4
    seed: int = 0
    label_concentration: float = LABEL_CONCENTRATION
    realistic: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        if not 1 <= self.n_cases <= _MOST_CASES:
            raise InputError("number of cases", expected=f"1 to {_MOST_CASES}", received=self.n_cases)
        if not 1 <= self.n_hospitals <= self.n_cases:
            expected = f"1 to the number of cases, {self.n_cases}"
            raise InputError("number of hospitals", expected=expected, received=self.n_hospitals)
        if not 0.0 < self.label_concentration < 1e6:
            expected = "a number above 0, below 1e6"
            raise InputError("label concentration", expected=expected, received=self.label_concentration)


@dataclass(frozen=True)
class SyntheticTables:
    """A fabricated cohort as rows.

    Args:
        recipe: What was asked for.
        rows: File name -> rows, in the columns of :data:`fllm.data.cdm_files.COLUMNS`.
        labels: Diagnosis -> admissions.
        hospitals: Admission -> hospital name.
        patients: Latent state of each case, in the order of the history file.
    """

    recipe: SyntheticRecipe
    rows: dict[str, list[tuple[str | int, ...]]] = field(repr=False)
    labels: dict[str, list[int]] = field(repr=False)
    hospitals: dict[int, str] = field(repr=False)
    patients: tuple[Patient, ...] = field(repr=False)
