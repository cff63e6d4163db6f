"""Look into a teacher and its students: the figures of the papers, on any detectors.

``models.py`` opens the detectors and walks over the images once for all analyses. Each analysis is a file: a class that
takes the records batch by batch, a result with a table and figures, and its arithmetic as pure functions.
"""
