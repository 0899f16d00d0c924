"""Export a trained policy to a NumPy, C or ONNX file that runs without upslope."""
