"""`coterie quickstart`: a whole run on text that every machine has."""
