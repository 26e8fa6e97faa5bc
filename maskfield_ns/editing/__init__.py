"""Edits of selections: tint, delete, extract, move, duplicate and insert, without training again."""
