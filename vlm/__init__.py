"""Diffusion vision-language models."""
