"""What the foundation models said about each image: schema, store, builder (see ``docs/cache.md``)."""
