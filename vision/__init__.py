"""Images in, features out."""

from vision.environment import check_kernels

check_kernels()
