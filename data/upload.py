"""A file that goes to an S3 bucket in parts while it is written, however large it becomes."""

from collections.abc import Callable
from typing import Any

PART = 16 << 20
"""Bytes of a part; S3 takes 10,000 of them, so 160 GB in all."""


class Upload:
    """A file to write from its start to its end; the object is there once it is closed.

    Args:
        path: bucket/key.
        ask: calls what it is given with a filesystem, again while the server's fault passes.
    """

    def __init__(self, path: str, ask: Callable[[Callable[[Any], Any]], Any]) -> None:
        self._bucket, _, self._key = path.partition("/")
        self._ask = ask
        self._part, self._sent = bytearray(), 0
        self._id: str | None = None
        self._tags: list[dict[str, Any]] = []

    def write(self, data: bytes) -> int:
        """Takes bytes, and sends what makes a whole part."""
        self._part += data
        while len(self._part) >= PART:
            self._send(PART)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._sent + len(self._part)

    def close(self) -> None:
        """Sends the rest and makes the object of the parts."""
        if self._id is None:
            self._call("put_object", Body=bytes(self._part))
            return
        if self._part:
            self._send(len(self._part))
        parts = {"Parts": self._tags}
        self._call("complete_multipart_upload", UploadId=self._id, MultipartUpload=parts)

    def abort(self) -> None:
        """Drops the parts that were sent."""
        if self._id is not None:
            self._call("abort_multipart_upload", UploadId=self._id)

    def _send(self, size: int) -> None:
        if self._id is None:
            self._id = str(self._call("create_multipart_upload")["UploadId"])
        body, number = bytes(self._part[:size]), len(self._tags) + 1
        answer = self._call("upload_part", UploadId=self._id, PartNumber=number, Body=body)
        self._tags.append({"ETag": answer["ETag"], "PartNumber": number})
        self._sent += size
        del self._part[:size]

    def _call(self, method: str, **words: Any) -> Any:
        place = {"Bucket": self._bucket, "Key": self._key}
        return self._ask(lambda filesystem: filesystem.call_s3(method, **place, **words))
