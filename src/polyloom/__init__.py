"""Polyloom: a workbench for the whole life of a multilingual language model."""

__version__ = "0.1.0"
