"""Measure the speed, memory and quality figures of the README."""
