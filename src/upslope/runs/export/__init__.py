"""Export a trained policy to a file that acts without upslope: NumPy, C, or ONNX."""
