"""Runs the engine as a torchrun group and serves it. No tensor maths here."""
