"""Pictures of answers: colors, overlays and contact sheets."""
