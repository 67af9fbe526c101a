"""Pure functions of tensors: converters, attention, ternary arithmetic."""
