"""Patterns of users and files, matched in bounded time. Knows no host, no torch, no disk; `convert` uses it too."""
