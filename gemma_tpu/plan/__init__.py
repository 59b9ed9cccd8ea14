"""What a model needs on a TPU slice, from the TPU compiler itself: no TPU is there."""
