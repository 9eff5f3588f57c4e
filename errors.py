"""Everything that can be wrong, as one tree. Every message names the value and the fix.

DiptychError
├── RecipeError        a recipe, an override or a shape that cannot be meant
├── DataError          what was read is not what was promised
│   ├── ShardError     one shard or one sample of it, named
│   │   └── CrcError   other bytes than were indexed: reading them once more may help
│   ├── StaleIndexError  the index is missing, stale or does not fit the shards
│   ├── ReplacedError  an object is not the one that was indexed: it was overwritten since
│   └── StaleCacheError  encoder outputs of another encoder, crop or dataset, or not all of them
├── StorageError       a bucket or a disk said no: missing, denied, full, unreachable
├── RunError           a run directory that is not one, is busy, or belongs to another recipe
├── CheckpointError    a checkpoint that is incomplete, changed or of another model
├── NonFiniteError     loss or gradient was not finite, too many times in a row
├── ExportError        an export that could not be written or could not be proven
└── ClusterError       workers that did not start, or died more often than allowed
"""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class DiptychError(Exception):
    """Base of all errors that a user can do something about; the command line exits with 2."""

    def __str__(self) -> str:
        """The message; what names in strange tars would tell a terminal to do is shown instead."""
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", super().__str__())


class Stopped(Exception):
    """The user asked a run to end. No error: a checkpoint of all that was done is kept."""


class RecipeError(DiptychError):
    """A recipe, an override or a shape that cannot be meant."""


class DataError(DiptychError):
    """What was read is not what was promised."""


class ShardError(DataError):
    """One shard, or one sample of it, is unreadable; the message names it."""


class CrcError(ShardError):
    """A sample's bytes are not those that were indexed; reading them once more may help."""


class StaleIndexError(DataError):
    """The index is missing, stale or does not fit its shards."""


class ReplacedError(DataError):
    """An object is not the one that was indexed: its etag has changed."""


class StaleCacheError(DataError):
    """A cache of encoder outputs is of another encoder, crop or dataset, or is not finished."""


class StorageError(DiptychError):
    """A bucket or a disk said no: missing, denied, full, unreachable."""


class RunError(DiptychError):
    """A run directory that is not one, is busy, or belongs to another recipe."""


class CheckpointError(DiptychError):
    """A checkpoint that is incomplete, changed, or of another model."""


class NonFiniteError(DiptychError):
    """Loss or gradient was not finite, too many steps in a row."""

    def __init__(self, message: str, step: int = -1) -> None:
        super().__init__(message)
        self.step = step


class ExportError(DiptychError):
    """An export that could not be written, or could not be proven."""


class ClusterError(DiptychError):
    """Workers did not start, or died more often than the shape allows."""
