"""What a retraining tells people at its end: the report, its texts, and the card of a version."""
