"""Answers of a model for images and texts that a person asks about."""
