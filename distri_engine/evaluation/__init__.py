"""Measurements of the paper: what a picture costs each device, counted without weights and devices, and how good
pictures are.
"""
