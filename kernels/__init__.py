"""Tensor operations: one file per operation, each with its plain-torch reference."""
