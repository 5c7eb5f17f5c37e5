"""Many variants with frozen trunks trained side by side: heads of one shape in stacks, each as if it were alone."""
