"""A TensorRT plan timed as `trtexec` times it: by events on the GPU, with two inferences under way."""
