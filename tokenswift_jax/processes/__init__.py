"""Several processes that write one text: how they find each other, and how process 0 decides for all."""
