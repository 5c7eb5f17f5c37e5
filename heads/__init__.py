"""Pure torch: from a variant's spec to a trained model and the bundle a consumer loads."""
