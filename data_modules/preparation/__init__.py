"""From files to tensors: reading, transforms, slices, caches."""
