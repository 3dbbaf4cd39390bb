"""Patched layers: each computes, on a band of rows or with a share of the weights, what its plain twin would."""
