"""Bilevel programs that the library ships, each with the numerical kernels its structure allows."""
