"""What an .onnx file tells without being run: its facts, its inputs, its external data."""
