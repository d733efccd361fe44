"""The server: runs that outlive their connections, on slots that many texts share, behind OpenAI's interface."""
