"""From an `nn.Module` to a checked, simplified, readable ONNX model."""
