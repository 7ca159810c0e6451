"""Small helpers that every room may use: errors, files, machine facts, callable rooms."""
