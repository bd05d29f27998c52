"""A bucket behind a server that makes trouble, and what lies there, seen without it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tests.troubled import Troubled

_BUCKET = "faults"


@dataclass
class Store:
    """A bucket, and its server that is made to make trouble."""

    proxy: Troubled
    client: Any
    uri: str
    """Of a folder, through the trouble."""

    def place(self, name: str) -> str:
        return self.uri.replace("?", f"/{name}?")

    def keys(self, name: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix=f"runs/{name}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [key for key in keys if not key.endswith("/")]  # that is a folder's own

    def shards(self, name: str) -> int:
        return sum(Path(key).name.startswith("shard-") for key in self.keys(name))

    def fetch(self, name: str, folder: Path) -> Path:
        """What is there, as it is there: not through the trouble, nor by our own reader."""
        for key in self.keys(name):
            path = folder / Path(key).relative_to(f"runs/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file(_BUCKET, key, str(path))
        return folder

    def put(self, folder: Path, name: str) -> None:
        """All files of a folder."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.client.upload_file(str(path), _BUCKET, f"runs/{name}/{path.relative_to(folder)}")


@contextmanager
def troubled_store(new_bucket: Callable[[str], str]) -> Iterator[Store]:
    import boto3

    options = dict(parse_qsl(new_bucket(_BUCKET).partition("?")[2]))
    host, _, port = options["endpoint_override"].partition(":")
    keys = {"aws_access_key_id": "user", "aws_secret_access_key": "hush"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **keys)
    proxy = Troubled((host, int(port)))
    where = f"endpoint_override=127.0.0.1%3A{proxy.port}&scheme=http&region=us-east-1"
    yield Store(proxy, client, f"s3://user:hush@{_BUCKET}/runs?{where}")
    proxy.mood = "well"
    proxy.listener.close()
