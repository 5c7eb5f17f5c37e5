"""Which stored features a phase may read in place of forwarding samples, how the store is filled, and what that costs."""
