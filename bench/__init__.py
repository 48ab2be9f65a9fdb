"""Benchmark of the focal losses against everything else in use: ``python -m bench --help``.

A scenario (``scenarios/``) says what is computed on which shapes; a candidate (``candidates.py``) is one
way to compute it. ``timing.py`` runs all candidates of a scenario interleaved, ``report.py`` and ``plots.py``
show the results, ``targets.py`` holds the ratios the project promises.
"""
