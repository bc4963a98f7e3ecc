"""Sound in, features out. Its place is kept: the audio work fills it."""
