"""What a phase may take from the feature store in place of forwarding images, filling the store, and what that costs."""
