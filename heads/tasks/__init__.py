"""The tasks, each with its head, loss, measures and answers, behind one closed table."""
