"""Run a TensorRT plan: the engine, lanes that run batches side by side, arrays that stay on the GPU."""
