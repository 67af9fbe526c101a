"""Kinds of fields that files hold: quantities, whole numbers, factors; each reads and bounds its own values.

pydantic is only imported when a file is validated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from device_models.quantities import parse_quantity


@dataclass(frozen=True)
class Quantity:
    """Annotation of a field that files write as a quantity string.

    Attributes:
        unit: SI unit that the field holds.
        above: Exclusive lower bound, in that unit.
        least: Inclusive lower bound.
        most: Inclusive upper bound.
    """

    unit: str
    above: float = -math.inf
    least: float = -math.inf
    most: float = math.inf

    def parse(self, value: object) -> float:
        """Read and bound one value; raises ValueError."""
        number = parse_quantity(value, self.unit)
        if not (number > self.above and self.least <= number <= self.most):
            bounds = [f"> {self.above:g}"] if self.above > -math.inf else []
            bounds += [f">= {self.least:g}"] if self.least > -math.inf else []
            bounds += [f"<= {self.most:g}"] if self.most < math.inf else []
            raise ValueError(f"expected a value {' and '.join(bounds)} {self.unit}")
        return number

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Tell pydantic to read quantity strings."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.parse)


@dataclass(frozen=True)
class Whole:
    """Annotation of an integer field with inclusive bounds; booleans and floats are refused."""

    least: int
    most: int

    def parse(self, value: object) -> int:
        """Check one value; raises ValueError."""
        if isinstance(value, bool) or not isinstance(value, int) or not self.least <= value <= self.most:
            raise ValueError(f"expected a whole number from {self.least} to {self.most}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Tell pydantic to check integers."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.parse)


@dataclass(frozen=True)
class Factor:
    """Annotation of a dimensionless number with inclusive bounds."""

    least: float
    most: float

    def parse(self, value: object) -> float:
        """Check one value; raises ValueError."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.least <= value <= self.most:
            raise ValueError(f"expected a number from {self.least:g} to {self.most:g}, without unit")
        return float(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Tell pydantic to check numbers."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.parse)


Levels = Annotated[int, Whole(2, 65536)]
Energy = Annotated[float, Quantity("J", least=0.0, most=1e-3)]
Duration = Annotated[float, Quantity("s", least=0.0, most=1.0)]
Power = Annotated[float, Quantity("W", least=0.0, most=1e3)]
Area = Annotated[float, Quantity("m**2", least=0.0, most=1.0)]
Rate = Annotated[float, Quantity("1/s", above=0.0, most=1e21)]
STRICT = {"extra": "forbid"}
"""Configuration of every section for pydantic: an unknown key is an error."""
