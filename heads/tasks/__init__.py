"""What is predicted, a task each: its head, loss, measures and answers, behind one closed table."""
