"""What a plan would do and cost, before anything is done."""
