"""GGUF files, llama.cpp's: this package recognises, checks and converts them to checkpoint directories."""
