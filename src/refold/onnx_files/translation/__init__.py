"""An ONNX graph in the words of torch, as the fold passes read it."""
