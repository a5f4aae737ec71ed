"""`build-trt`: the precision into the graph, the graph into a TensorRT plan, and proof of what was built."""
