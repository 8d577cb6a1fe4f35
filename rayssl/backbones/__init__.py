"""Feature networks f, one file a family: a batch of images -> `[B, out_features]`."""
