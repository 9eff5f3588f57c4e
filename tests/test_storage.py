import subprocess
import sys
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from diptych.data import storage
from diptych.errors import StorageError

REFUSED = """pipe:cat|x PIPE:x pipe://x gs://b/x hf://d/x ftp://h/x http://h/x S3://b/x s3:b/x
memory://x simplecache::s3://b/x s3::file://x data:,x"""


@pytest.mark.parametrize("url", REFUSED.split())
def test_other_schemes_are_refused(url: str) -> None:
    for use in (storage.absolute, storage.expand, storage.read, storage.open_read, storage.exists):
        with pytest.raises(StorageError, match="refused"):
            use(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/x", "AWS_ACCESS_KEY_ID"),
        ("https://user:secret@host/x.tar", "AWS_ACCESS_KEY_ID"),
        ("HTTPS://user:sec/ret@secret@host/x.tar", r"'HTTPS://…@host/x.tar': the scheme"),
        ("http://host/x.tar?X-Amz-Signature=secret", r"'http://host/x.tar\?…': the scheme"),
        ("https://host/x.tar?sig=secret\n", "control character"),
        ("https://host/{0..9.tar?sig=secret", "braces do not close"),
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str, said: str) -> None:
    with pytest.raises(StorageError, match=said) as caught:
        storage.expand(url)
    assert "secret" not in str(caught.value) and "ret@" not in str(caught.value)


def test_a_url_needs_a_bucket_or_a_host() -> None:
    for url in ("s3://", "https:///"):
        with pytest.raises(StorageError, match="names no bucket"):
            storage.absolute(url)


def test_paths_become_absolute_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("a/b", "./a/b/", "file://a/b", f"file://{tmp_path}/a/b/", str(tmp_path / "a/b")):
        assert storage.absolute(path) == f"file://{tmp_path}/a/b"
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"


def test_braces_and_globs_expand_in_order(tmp_path: Path) -> None:
    for name in ("x-10.tar", "x-9.tar", "x-8.txt", "y.tar"):
        (tmp_path / name).touch()
    root = f"file://{tmp_path}"
    assert storage.expand(f"{tmp_path}/x-{{8..10}}.tar") == [
        f"{root}/x-{number}.tar" for number in (8, 9, 10)
    ]
    assert storage.expand([f"{tmp_path}/y*", f"{tmp_path}/{{x,y}}*.tar"]) == [
        f"{root}/{name}" for name in ("y.tar", "x-10.tar", "x-9.tar", "y.tar")
    ]
    assert storage.expand("s3://b/{000..002}.tar")[2] == "s3://b/002.tar"


def test_a_folder_stands_for_its_tars(bucket: str, tmp_path: Path) -> None:
    for root in (f"file://{tmp_path}/set", f"{bucket}/folder-of-tars"):
        for name in ("1.TAR", "0.tar", "notes.txt", "index/0.json"):
            storage.write(f"{root}/{name}", b"x")
        tars = [f"{root}/{name}" for name in ("0.tar", "1.TAR")]
        assert storage.shards(root) == tars
        assert storage.shards([tars[1], f"{root}/"]) == [tars[1], *tars]
        with pytest.raises(StorageError, match=r"index/\*\.tar matches nothing"):
            storage.shards(f"{root}/index")
    for root in (f"file://{tmp_path}/odd", f"{bucket}/odd"):  # a pattern found it; it is none
        storage.write(f"{root}/set[1]/0.tar", b"x")
        storage.write(f"{root}/set1/1.tar", b"x")
        assert storage.shards(f"{root}/set[[]*") == [f"{root}/set[1]/0.tar"]
    missing = f"{tmp_path}/none"
    assert storage.shards(missing) == [f"file://{missing}"]  # what reads it will say so


def test_what_is_there_is_no_pattern(bucket: str, tmp_path: Path) -> None:
    for root in (f"file://{tmp_path}", bucket):
        for name in ("set [v1]/0.tar", "set [v1]/1.tar", "what?/0.tar", "set 1/0.tar"):
            storage.write(f"{root}/{name}", b"x")
        tars = [f"{root}/set [v1]/{number}.tar" for number in (0, 1)]
        assert storage.shards(f"{root}/set [v1]") == tars
        assert storage.shards(f"{root}/set [v1]/{{0..1}}.tar") == tars
        assert storage.shards(f"{root}/what?/0.tar") == [f"{root}/what?/0.tar"]
        assert storage.shards(f"{root}/set [1-3]/?.tar") == [f"{root}/set 1/0.tar"]


def test_a_pattern_without_a_match_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"\*\.tar matches nothing"):
        storage.expand(f"{tmp_path}/*.tar")
    with pytest.raises(StorageError, match=r"Write a range as \{00000\.\.00099\}"):
        storage.expand("shards/{0..9.tar")


def test_the_query_of_a_signed_url_is_no_glob() -> None:
    url = "https://host/{0..1}.tar?signature=a*b[1]"
    assert storage.expand(url) == [f"https://host/{n}.tar?signature=a*b[1]" for n in (0, 1)]


def test_a_range_that_comes_short_is_an_error(tmp_path: Path) -> None:
    url = str(tmp_path / "x")
    storage.write(url, b"0123456789")
    assert storage.read(url) == b"0123456789"
    assert storage.read(url, 3, 10) == b"3456789"
    with pytest.raises(StorageError, match="2 bytes came for the range 8-12"):
        storage.read(url, 8, 12)


def test_what_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    url = storage.absolute(str(tmp_path / "nowhere" / "x"))
    for use in (storage.read, storage.open_read, storage.stat):
        with pytest.raises(StorageError) as caught:
            use(url)
        assert str(caught.value) == f"{url}: not there. Check the name."
    assert not storage.exists(url)
    assert storage.children(url) == []
    storage.delete(url)


def test_nothing_exists_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert storage.exists(str(tmp_path / "file"))
    assert not storage.exists(str(tmp_path / "file" / "below"))
    assert not storage.exists(str(tmp_path)), "a folder is no object"
    with pytest.raises(StorageError):
        storage.write(str(tmp_path / "file" / "below"), b"x")


def test_writing_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    url = str(tmp_path / "deep" / "x")
    storage.write(url, b"a long first version")
    before = storage.stat(url)
    with storage.open_read(url) as reader:
        storage.write(url, b"second")
        assert reader.read() == b"a long first version", "who reads is not disturbed"
    assert storage.read(url) == b"second"
    assert storage.stat(url) != before
    assert storage.children(str(tmp_path / "deep")) == ["x"]


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path) -> None:
    url = str(tmp_path / "x")
    storage.write(url, b"old")
    code = f"""
import resource
from diptych.data import storage
from diptych.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.write({url!r}, bytes(100_000))
except StorageError as err:
    print(err)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"file://{url}: no space left. Free some, or write elsewhere.\n"
    assert storage.read(url) == b"old"
    assert storage.children(str(tmp_path)) == ["x"]


@pytest.mark.parametrize("name", ["exp[1]", "ex*", "exp?", "a b+c%20"])
def test_a_name_that_looks_like_a_pattern_deletes_itself_alone(
    bucket: str, tmp_path: Path, name: str
) -> None:
    for root in (f"{bucket}/names/{tmp_path.name}", f"file://{tmp_path}"):
        kept = [f"{root}/{run}/step/rank-0.json" for run in ("exp1", "exp12", "other")]
        gone = [f"{root}/{name}/{file}" for file in ("stop.json", "step/rank-0.json")]
        for url in [*kept, *gone]:
            storage.write(url, b"x")
        storage.delete(gone[0])
        assert not storage.exists(gone[0])
        storage.delete(f"{root}/{name}")
        assert storage.children(root) == ["exp1", "exp12", "other"]
        assert all(storage.exists(url) for url in kept)


def test_a_folder_of_more_than_one_request_is_deleted(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_AT_ONCE", 3)
    urls = [f"{bucket}/many/{number}" for number in range(8)]
    for url in [*urls, f"{bucket}/many-more"]:
        storage.write(url, b"x")
    storage.delete(f"{bucket}/many")
    assert storage.children(f"{bucket}/many") == []
    assert storage.exists(f"{bucket}/many-more"), "a name that only begins alike"
    storage.delete(f"{bucket}/many")  # nothing is there: nothing happens


def test_an_object_that_may_not_be_deleted_is_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/locked/x"
    storage.write(url, b"x")
    key = url.partition("://")[2].partition("/")[2]
    refused = {"Key": key, "Code": "AccessDenied", "Message": "no"}
    # SeaweedFS lets whoever may write delete, too.
    monkeypatch.setattr(S3FileSystem, "call_s3", lambda *_, **__: {"Errors": [refused]})
    with pytest.raises(StorageError, match=f"{key}: not deleted: AccessDenied, no"):
        storage.delete(url)
