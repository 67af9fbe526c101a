"""The report of a sweep: statistics (``points``, ``bootstrap``, ``curves``, ``required``), figures, words, page."""
