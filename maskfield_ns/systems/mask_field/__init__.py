"""The mask field: queries with embeddings, learned from mask proposals of many views."""
