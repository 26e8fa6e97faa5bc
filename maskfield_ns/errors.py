"""Errors a user can act on: commands print their message alone and exit with code 1."""


class MaskfieldError(RuntimeError):
    """Something is wrong with what the user gave us; the message says what and what to do about it."""


class CaptureError(MaskfieldError):
    """The capture (images, cameras, labels) is missing, broken or inconsistent."""


class CacheError(MaskfieldError):
    """The mask cache cannot be read, written or trusted."""


class WeightsError(MaskfieldError):
    """Foundation-model weights are missing or not what they should be."""


class CheckpointError(MaskfieldError):
    """A trained run cannot be opened by this version."""


class SplatError(MaskfieldError):
    """Gaussians cannot be rendered: values that are not finite, or tensors of the wrong shape, type or device."""


class QuestionError(MaskfieldError, ValueError):
    """A question cannot be understood: the wrong type, an empty phrase, or several kinds of question at once."""


class SelectionError(MaskfieldError):
    """Nothing can be selected like this: no such thing, or a selection of another scene."""


class NothingFoundError(SelectionError):
    """Nothing in the scene answers; commands end with exit code 3."""


class EditError(MaskfieldError):
    """An edit cannot be made, read or written."""


class PlyError(MaskfieldError):
    """A .ply file is not what it should be."""


class BenchmarkError(MaskfieldError):
    """A benchmark scene, its labels or predictions for it are missing, incomplete or inconsistent."""
