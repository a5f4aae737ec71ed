"""What a DenseNet costs: parameters, multiply-accumulates, activation memory; from its numbers or an ONNX graph."""
