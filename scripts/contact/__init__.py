"""The first minutes on a machine with a GPU: what runs in them, in which order, how long, and how it is read."""
