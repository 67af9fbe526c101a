"""Sweeps: one trained adapter, or one training per point, under many devices; table, figures and report.

``design`` (which values), ``plan`` (which points), ``table`` (rows on disk), ``tasks`` and ``engines`` (who computes),
``bench`` (what a worker does), ``estimate`` (how long it will take), ``sweep`` (all of it, resumable).
"""
