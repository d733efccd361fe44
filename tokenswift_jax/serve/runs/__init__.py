"""The runs surface, for pages and scripts: create, list, follow, pause, continue, branch, cancel, download."""
