"""OpenAI's interface: completions, chat completions, responses."""
