"""A check of a bucket, before anything is started that needs it."""

from __future__ import annotations

import secrets
from pathlib import Path

from flows import s3
from flows.errors import AskedWrongly
from flows.roots import Root


def check_root(root: Root) -> None:
    """Check, of a storage root in a bucket, that it can be written, listed, read and cleared, and knows conditional puts.

    Raises Unreachable or AskedWrongly, with what to do, within seconds: the requests are not tried for long.
    """
    if isinstance(root, Path):
        return
    bucket, prefix = s3.split(root)
    named = {"Bucket": bucket, "Key": "/".join(filter(None, (prefix, f"check-{secrets.token_hex(8)}")))}
    with s3.in_our_words(f"the storage {root}", doing="used"):
        client = s3.connect_briefly()
        first, second = (s3.put_if_absent(client, named, content) for content in (b"first", b"second"))
        kept = client.get_object(**named)["Body"].read()
        listed = client.list_objects_v2(Bucket=bucket, Prefix=named["Key"]).get("Contents", ())
        client.delete_object(**named)
    if not first or second or kept != b"first" or len(listed) != 1:
        raise AskedWrongly(
            f"the storage {root} cannot be used: {s3.REMEDIES['NotImplemented']}; its S3 server wrote one object twice"
        )
