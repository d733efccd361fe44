"""Texts for a folder of prompts, by any number of workers that share a disk."""
