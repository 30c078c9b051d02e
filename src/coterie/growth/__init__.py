"""Experts as they are needed: is a corpus new, whose is it, which experts are alike; the library of skills that knows."""
