"""What a bucket's refusal means to a user, in one line."""

from __future__ import annotations

from typing import Any

from nemotron_style.runtime.errors import Problem, StepsError, StoreError

CREDENTIALS = (
    "export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
    "a job gets the variables that its profile names under secrets"
)
REFUSED = ("the bucket refuses these credentials", CREDENTIALS)
FULL = ("is full", "make room there, or choose another store")
BUSY = (
    "answers that it cannot at the moment, also when asked again",
    "run the same command again later; it goes on where it was",
)
UNKNOWN = ("does not know conditional writes (If-None-Match), by which versions are handed out",)
ENDPOINT = "is AWS_ENDPOINT_URL right, and the server up?"
REASONS: dict[str, tuple[str, ...]] = {
    "NoSuchBucket": ("there is no such bucket", "make it, or correct the name"),
    "AccessDenied": REFUSED,
    "403": REFUSED,
    "InvalidAccessKeyId": REFUSED,
    "SignatureDoesNotMatch": REFUSED,
    "ExpiredToken": ("the credentials have expired", CREDENTIALS),
    "InvalidToken": REFUSED,
    "NoCredentialsError": ("there are no credentials", CREDENTIALS),
    "PartialCredentialsError": ("the credentials are not whole", CREDENTIALS),
    "ProfileNotFound": ("AWS_PROFILE names no profile of the AWS config", CREDENTIALS),
    "EndpointConnectionError": ("cannot be reached", ENDPOINT),
    "SSLError": ("cannot be reached by https", ENDPOINT),
    "ConnectTimeoutError": ("does not answer", ENDPOINT),
    "ReadTimeoutError": ("does not answer", ENDPOINT),
    "ConnectionClosedError": ("does not answer", ENDPOINT),
    "HTTPClientError": ("does not answer", ENDPOINT),
    "TimeoutError": ("does not answer", ENDPOINT),
    "InvalidBucketName": ("is no name of a bucket", ""),
    "NotImplemented": UNKNOWN,
    "501": UNKNOWN,
    "SlowDown": BUSY,
    "ServiceUnavailable": BUSY,
    "503": BUSY,
    "InternalError": BUSY,
    "500": BUSY,
    "QuotaExceeded": FULL,
    "InsufficientStorage": FULL,
    "XMinioStorageFull": FULL,
    "507": FULL,
}
ABSENT = ("NoSuchKey", "404", "NotFound", "NoSuchUpload")


def code_of(error: BaseException) -> str:
    """The code in a server's answer, else the name of the error's type."""
    for each in (error, error.__cause__):
        response: Any = getattr(each, "response", None)
        if isinstance(response, dict) and (code := response.get("Error", {}).get("Code")):
            return str(code)
    return type(error).__name__


def explain(error: Exception, url: str) -> Exception:
    """The error to raise: StoreError, or FileNotFoundError for an object that is not there."""
    if isinstance(error, StepsError):
        return error
    code = code_of(error)
    if code in ABSENT or (isinstance(error, FileNotFoundError) and code not in REASONS):
        return FileNotFoundError(url)
    reason = REASONS.get(code) or REASONS.get(type(error).__name__)
    if reason is None:
        text = " ".join(str(error).split()) or type(error).__name__
        reason = (f"the bucket does not do what it is asked for: {text}",)
    what, fix = (*reason, "")[:2]
    return StoreError(Problem(where=url, what=what, fix=fix))
