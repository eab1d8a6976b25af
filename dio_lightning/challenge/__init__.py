"""Challenges: scoring fields that lie in files, Learn2Reg's own numbers, and what is submitted."""
