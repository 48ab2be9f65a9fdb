"""Benchmark of the focal losses against everything else in use: ``python -m bench --help``.

A scenario (``scenarios/``) says what is computed on which shapes; a candidate (``candidates.py``) is one
way to compute it. ``timing.py`` runs all candidates of a scenario interleaved, ``report.py`` and ``plots.py``
show the results, ``targets.py`` holds the ratios the project promises. ``retinanet.py`` measures the loss where it is
used, in a training step of a detector. ``gpu.py`` does all of it on a GPU machine: what it runs is in ``parts.py``.
"""
