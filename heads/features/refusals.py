"""An object store's errors in words for people: what was wrong, the address, what to do."""

from __future__ import annotations

import errno

from heads.errors import HeadsError

CREDENTIALS = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to those of someone who may read and write it"
SERVER = "the server is the one that AWS_ENDPOINT_URL_S3 or the AWS profile names, else AWS's own"
# Libraries of stores have no common family of errors and need not be installed: errors are known by name.
LACKS_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "CredentialRetrievalError",
    "NoAuthTokenError",
}
DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT}


def explain(address: str, error: Exception) -> HeadsError | None:
    """The error in words for people, or None if all it says is that an object is not there."""
    code = _code(error)
    if code == "NoSuchBucket":
        bucket = address.partition("://")[2].partition("/")[0]
        return HeadsError(f"{address}: there is no bucket {bucket!r}; make it, or name another; {SERVER}")
    if isinstance(error, FileNotFoundError):
        return None
    if isinstance(error, OSError) and error.errno in DISK_IS_FULL and not code:
        return HeadsError(
            f"the copies of {address} on this machine fill its disk ({error}); "
            "name a larger one in XDG_CACHE_HOME, or train on fewer features at once"
        )
    if type(error).__name__ in LACKS_CREDENTIALS:
        return HeadsError(f"{address}: no credentials ({error}); {CREDENTIALS}")
    if isinstance(error, PermissionError):
        return HeadsError(f"{address}: access is refused ({code or 'PermissionError'}: {error}); {CREDENTIALS}")
    return HeadsError(f"{address} cannot be used: {str(error) or type(error).__name__}; {SERVER}")


def _code(error: Exception) -> str:
    """The store's own code for what is wrong, or ''."""
    response = getattr(error.__cause__ or error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
