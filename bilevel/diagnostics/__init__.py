"""Measurements that tell whether a method fits a problem and an answer can be trusted."""
