"""Run TensorRT engines: the engine, its execution contexts, and arrays that stay on the GPU."""
