"""Feature networks f, one file a family. Every backbone maps a batch of images to `[B, out_features]`."""
