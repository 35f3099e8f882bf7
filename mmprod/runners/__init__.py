"""What executes graphs, one file per library: PyTorch, ONNX Runtime, TensorRT."""
