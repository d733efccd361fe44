"""Training of draft heads, and of the demo's backbone: documents, token shards, packed rows."""
