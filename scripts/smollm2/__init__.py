"""The draft heads of SmolLM2-135M-Instruct: prompts, the texts that the model writes after them, and training."""
