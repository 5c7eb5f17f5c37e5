"""What runs beside a stage, so that nothing waits for it: threads, and processes and libraries that are loaded ahead."""
