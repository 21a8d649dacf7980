"""The arithmetic of the algorithms: tensors in, tensors out."""
