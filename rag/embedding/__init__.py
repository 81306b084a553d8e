"""Text to unit vectors: one interface; an ONNX encoder for the packaged model, sentence-transformers for others."""
