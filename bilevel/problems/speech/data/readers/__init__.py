"""Readers of corpora, one a format: ``recognises(path)`` and ``read(path)``."""
