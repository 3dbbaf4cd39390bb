"""Patched layers: each computes one kind of layer on a band of rows, as its plain twin would on the whole picture."""
