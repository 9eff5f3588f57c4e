"""How an S3 object is asked for: the URL and signature that botocore would use, at a tenth of it.

A botocore client is asked once a bucket how it would sign (endpoint, style of address, region,
all from the usual variables, profiles and roles); requests are then signed alike, by botocore's
own signer, with credentials that it keeps fresh. Nothing secret is in a URL.
"""

import functools
import gzip
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pydantic_core


@dataclass(frozen=True, slots=True)
class Form:
    """How the objects of one bucket are asked for."""

    base: str
    """URL up to the key."""
    region: str
    service: str


@functools.cache
def descriptions() -> Any:
    """botocore's loader of what it knows of S3, most of the time that a client takes to be made.

    It holds no connection and no credential, so a process that is forked may use its parent's.
    """
    from botocore.exceptions import DataNotFoundError
    from botocore.loaders import JSONFileLoader, create_loader

    class Files(JSONFileLoader):
        """The same files, parsed in a quarter of the time."""

        def load_file(self, file_path: str) -> Any:
            for ending, unpacked in ((".json", bytes), (".json.gz", gzip.decompress)):
                file = Path(file_path + ending)
                if file.is_file():
                    return pydantic_core.from_json(unpacked(file.read_bytes()))
            return None

    loader = create_loader(os.environ.get("AWS_DATA_PATH"))
    loader.file_loader = Files()
    with suppress(DataNotFoundError):  # of another version; it is then read when it is needed
        for kind in ("service-2", "endpoint-rule-set-1"):
            loader.load_service_model("s3", kind)
        for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
            loader.load_data(name)
    return loader


class Signer:
    """Signed requests of one process; safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: dict[str, Form] = {}
        self._clients: dict[str | None, Any] = {}

    def form(self, bucket: str) -> Form:
        """How objects of a bucket are asked for."""
        with self._lock:
            if bucket not in self._forms:
                self._forms[bucket] = self._ask(bucket, None)
            return self._forms[bucket]

    def move(self, bucket: str, region: str) -> bool:
        """Learns that a bucket lies in another region; False if that was known already."""
        with self._lock:
            if not region or self._forms[bucket].region == region:
                return False
            self._forms[bucket] = self._ask(bucket, region)
            return True

    def url(self, bucket: str, key: str) -> str:
        """The URL of an object, without any signature."""
        return self.form(bucket).base + quote(key, safe="/~")

    def sign(self, bucket: str, url: str, headers: dict[str, str]) -> dict[str, str]:
        """The headers of a GET, with its signature.

        Raises:
            NoCredentialsError: of botocore, if there are none.
        """
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        form = self.form(bucket)
        request = AWSRequest("GET", url, headers=headers)
        keys = self._credentials.get_frozen_credentials()
        S3SigV4Auth(keys, form.service, form.region).add_auth(request)
        return {name: str(value) for name, value in request.headers.items()}

    def list_one(self, bucket: str) -> None:
        """Asks a bucket for one name; raises what botocore raises if it cannot be used."""
        with self._lock:
            client = self._client(None)
        client.list_objects_v2(Bucket=bucket, MaxKeys=1)

    def bundle(self) -> str | None:
        """The file of certificates that AWS_CA_BUNDLE or the profile names."""
        return self._session.get_config_variable("ca_bundle")

    @functools.cached_property
    def _session(self) -> Any:
        import botocore.session

        session = botocore.session.get_session()
        session.register_component("data_loader", descriptions())
        return session

    @functools.cached_property
    def _credentials(self) -> Any:
        return self._session.get_credentials()

    def _client(self, region: str | None) -> Any:
        from botocore.config import Config

        if region not in self._clients:
            config = Config(signature_version="s3v4", connect_timeout=5, read_timeout=15)
            client = self._session.create_client("s3", region_name=region, config=config)
            self._clients[region] = client
        return self._clients[region]

    def _ask(self, bucket: str, region: str | None) -> Form:
        client = self._client(region)
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
        parts = urlsplit(url)
        scope = parse_qs(parts.query)["X-Amz-Credential"][0].split("/")
        base = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('k')}"
        return Form(base, region=scope[-3], service=scope[-2])
