"""Things in 3D: select them, measure them, edit them, carry them out of a scene and into another one.

Nothing here is learnt and no checkpoint changes. A selection says what belongs to a thing, an edit list what happens to
selections, and a model whose ``edits`` are set renders the result.
"""
