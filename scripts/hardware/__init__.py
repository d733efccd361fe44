"""Programs, accelerators and what one must do on the other: what the scripts that compile or measure steps share."""
