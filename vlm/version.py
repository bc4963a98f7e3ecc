"""The project's version, in a module that imports nothing, so that the build reads it without the dependencies."""

VERSION = "0.1.0"
